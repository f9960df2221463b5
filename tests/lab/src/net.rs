//! TCP connections into the lab's network.

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

/// The network namespace in which the lab's clients live.
pub const CLIENT_NETNS: &str = "/run/netns/mbcopylab";

/// Connects to a lab host from the client namespace.
///
/// A socket belongs to the namespace of the thread that created it, so a short-lived
/// thread moves there and connects; the caller's own thread stays where it is.
pub fn connect(ip: &str, port: u16, timeout: Duration) -> Result<TcpStream> {
    let ip: IpAddr = ip.parse().with_context(|| format!("{ip} is no IP address"))?;
    let address = SocketAddr::new(ip, port);
    let connecting = std::thread::spawn(move || -> Result<TcpStream> {
        let netns = File::open(CLIENT_NETNS).with_context(|| format!("opening {CLIENT_NETNS}"))?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("entering {CLIENT_NETNS}"))?;
        TcpStream::connect_timeout(&address, timeout)
            .with_context(|| format!("connecting to {address}"))
    });
    let stream =
        connecting.join().map_err(|_| anyhow::anyhow!("the connecting thread panicked"))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
