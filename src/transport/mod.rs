//! Reaches the other server over SSH, in process, the way the administrator's own `ssh` would.
//!
//! ```text
//! Destination --ssh -G--> ResolvedHost --tcp | jump host | proxy command--> stream
//!      --host key check--> --public key--> Session --exec--> RemoteProcess (stdin, stdout, exit)
//! ```
//!
//! What this module promises to the rest of the program:
//!
//! * What works with `ssh host` works here: aliases, jump hosts, agents and known_hosts files come from
//!   the user's OpenSSH configuration, read by `ssh -G` and never by a second parser of ours.
//! * A host key that is unknown or changed is an error, never a question and never a warning.
//! * No local shell sees a host or user name, except in the user's own `ProxyCommand`, and then only
//!   names free of shell characters.  The remote shell gets words quoted by [`quote`].
//! * Every wait has an end: connecting, the handshake, authentication and opening a channel have time
//!   limits, and keepalives notice a dead peer within about 75 seconds.
//! * What the peer sends is bounded: standard output by a byte budget per process, standard error by its
//!   last 32 KiB with control characters made harmless.
//!
//! One connection carries several processes.  All of them share one stream of packets: a process whose
//! output budget is used up either stalls the others or is closed, see [`WhenFull`].

mod auth;
mod connect;
mod destination;
mod error;
mod host_key;
mod known_hosts;
mod options;
mod process;
mod session;
mod ssh_config;
mod text;
mod upload;

pub use destination::Destination;
pub use error::{AuthFailure, HostKeyProblem, TransportError};
pub use known_hosts::{HostKeyVerdict, KnownHosts, LookupName, Place};
pub use options::ConnectOptions;
pub use process::{
    ExecOptions, ExitStatus, ProcessExit, ProcessStdin, ProcessStdout, RemoteOutput, RemoteProcess,
    StderrTail, WhenFull,
};
pub use session::Session;
pub use ssh_config::{AddressFamily, Proxy, ResolvedHost, StrictHostKey, resolve};
pub use text::{join_quoted, neutralise, quote, split_quoted};
pub use upload::{UploadReport, upload};
