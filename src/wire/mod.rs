//! The wire protocol: frames, bulk data and manifests. Pure: bytes in, values
//! out. `proto/README.md` describes it byte by byte.

pub mod blocks;
pub mod bulk;
pub mod frame;
pub mod manifest;
pub mod pool;

/// The control messages, generated from `proto/mbcopy/v1/control.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/mbcopy.v1.rs"));
}

/// The largest message that is carried over to a mailbox in use, in bytes.
pub const MAX_MESSAGE: usize = 1 << 30;

/// The lowest and highest protocol version that this program speaks.
pub const PROTOCOL: std::ops::RangeInclusive<u32> = 2..=2;

/// What a further channel's command writes, before the four bytes of its number.
pub const LANE_OPENING: &[u8; 16] = b"\x00mbcopy-lane\x01\r\n\n";

/// The capability of reading bulk data from a child's memory.
pub const LEND: &str = "lend";

/// The code of a problem that says what of the source is not carried over.
pub const STRAGGLER_LEFT: &str = "straggler-left";

/// The mailbox ordinal that stands for the user himself in bulk data.
pub const USER: u32 = u32::MAX;

/// How this program names itself to its peer.
pub const SOFTWARE: &str = concat!("mbcopy ", env!("CARGO_PKG_VERSION"));

impl v1::Problem {
    /// What preflight has found of the whole user: a stable word, what it is, what to do.
    pub fn new(severity: v1::problem::Severity, code: &str, text: String, advice: &str) -> Self {
        Self {
            severity: severity.into(),
            code: code.into(),
            text,
            advice: advice.into(),
            ..Self::default()
        }
    }

    /// One that stands against the move.
    pub fn refuse(code: &str, text: String, advice: &str) -> Self {
        Self::new(v1::problem::Severity::Refuse, code, text, advice)
    }
}

impl v1::Failure {
    /// A failure of `kind`: what failed, what state things are in, what to do next.
    pub fn new(
        kind: v1::failure::Kind,
        text: impl Into<String>,
        state: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { kind: kind.into(), text: text.into(), state: state.into(), advice: advice.into() }
    }
}

/// Makes text of the peer harmless for a terminal and a log: control
/// characters become `\xNN`, and it is cut after 4,000 characters.
pub fn printable(text: &str) -> String {
    text.chars()
        .take(4000)
        .flat_map(|c| match c {
            '\n' | '\t' => vec![c],
            c if c.is_control() => format!("\\x{:02x}", u32::from(c)).chars().collect(),
            c => vec![c],
        })
        .collect()
}
