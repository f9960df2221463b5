//! TCP connections into the lab's network.

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The network namespace in which the lab's clients live; `$MBCOPY_LAB_NETNS` names another one.
pub(crate) fn client_netns() -> PathBuf {
    let name = std::env::var_os("MBCOPY_LAB_NETNS").unwrap_or_else(|| "mbcopylab".into());
    Path::new("/run/netns").join(name)
}

/// Connects to a lab host from the client namespace.
///
/// A socket belongs to the namespace of the thread that created it, so a short-lived
/// thread moves there and connects; the caller's own thread stays where it is.
pub fn connect(ip: &str, port: u16, timeout: Duration) -> Result<TcpStream> {
    let ip: IpAddr = ip.parse().with_context(|| format!("{ip} is no IP address"))?;
    let address = SocketAddr::new(ip, port);
    let connecting = std::thread::spawn(move || -> Result<TcpStream> {
        let path = client_netns();
        let netns = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("entering {}", path.display()))?;
        TcpStream::connect_timeout(&address, timeout)
            .with_context(|| format!("connecting to {address}"))
    });
    let stream =
        connecting.join().map_err(|_| anyhow::anyhow!("the connecting thread panicked"))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
