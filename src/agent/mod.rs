//! The agent: one side of a move, driven by a coordinator over its standard
//! input and output.
//!
//! A [`Handler`] (the source's or the target's) turns requests into replies;
//! [`serve`] does the framing around it. One request is handled at a time.

pub mod lanes;
mod loans;
pub mod privileges;
mod session;

pub use session::{Link, LinkError, Sender};

use crate::moves::MoveId;
use crate::wire::frame::{Frame, Kind};
use crate::wire::{self, v1};
use std::io::{Read, Write};

/// One side of a move.
pub trait Handler {
    /// Answers the opening request of a coordinator.
    fn welcome(&mut self, hello: &v1::Hello) -> Result<v1::Welcome, v1::Failure>;

    /// Does what a request asks for. What the coordinator streams after its
    /// request is read from `link`, what is streamed before the reply is
    /// written to it.
    fn handle(
        &mut self,
        op: v1::request::Op,
        link: &mut Link,
    ) -> Result<v1::reply::Result, v1::Failure>;
}

/// Serves one coordinator until it closes its side.
///
/// Errors: what broke the connection or the protocol. A coordinator that is
/// gone between two requests is the ordinary end.
pub fn serve(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    handler: &mut dyn Handler,
) -> Result<(), LinkError> {
    let mut link = Link::open(input, output)?;
    let mut welcomed = false;
    let sample = MoveId::random().to_string();
    while let Some(frame) = link.next_request()? {
        let request = frame.request;
        link.answering(request);
        let result = match frame.decode::<v1::Request>("request")?.op {
            Some(v1::request::Op::Hello(hello)) => {
                welcomed = true;
                greet(handler, &hello, &sample)
            }
            None => Err(unknown_request()),
            Some(_) if !welcomed => Err(protocol("a request came before the greeting")),
            Some(op) => {
                let store = matches!(op, v1::request::Op::Store(_));
                let append = matches!(op, v1::request::Op::AppendMessage(_));
                let parts =
                    matches!(op, v1::request::Op::Offer(_) | v1::request::Op::OfferStragglers(_));
                if store || append || parts {
                    link.expect_stream(store);
                }
                handler.handle(op, &mut link)
            }
        };
        if let Err(failure) = &result {
            tracing::warn!(text = %failure.text, state = %failure.state, "a request failed");
        }
        let result = result.unwrap_or_else(v1::reply::Result::Failure);
        link.skip_rest()?;
        link.sender().send(&Frame::message(
            Kind::Reply,
            request,
            &v1::Reply { result: Some(result) },
        ))?;
    }
    Ok(())
}

/// A parent that finds the sample in this process's memory can read what is lent.
fn greet(
    handler: &mut dyn Handler,
    hello: &v1::Hello,
    sample: &str,
) -> Result<v1::reply::Result, v1::Failure> {
    let ours = wire::PROTOCOL;
    let protocol = hello.protocol_max.min(*ours.end());
    if protocol < hello.protocol_min.max(*ours.start()) {
        return Err(v1::Failure::new(
            v1::failure::Kind::Protocol,
            format!(
                "{} speaks wire versions {} to {}, {} speaks {} to {}",
                wire::printable(&hello.software),
                hello.protocol_min,
                hello.protocol_max,
                wire::SOFTWARE,
                ours.start(),
                ours.end()
            ),
            "nothing was changed",
            "install the same version of mbcopy on both servers",
        ));
    }
    let mut welcome = handler.welcome(hello)?;
    welcome.protocol = protocol;
    welcome.software = wire::SOFTWARE.into();
    if hello.capabilities.iter().any(|word| word == wire::LEND) {
        let content = bytes::Bytes::copy_from_slice(sample.as_bytes());
        welcome.sample = Some(v1::Sample { address: sample.as_ptr() as u64, content });
    }
    Ok(v1::reply::Result::Welcome(welcome))
}

/// The failure of a request that this version does not know.
pub fn unknown_request() -> v1::Failure {
    protocol("a request that this version of mbcopy does not know")
}

/// A breach of the protocol by the peer.
pub fn protocol(text: impl Into<String>) -> v1::Failure {
    v1::Failure::new(
        v1::failure::Kind::Protocol,
        text,
        "nothing was changed by this request",
        "install the same version of mbcopy on both servers; if it is the same, report this",
    )
}
