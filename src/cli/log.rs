//! Logs: the program's own to standard error, what admins look for to syslog.

use std::io::IsTerminal;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// Sends the program's own log to standard error.
pub(super) fn to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "mbcopy=info,warn",
        _ => "mbcopy=debug,info",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("MBCOPY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // What an agent says may end up in another program's error.
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .try_init();
}

/// The system's log, where there is one.
pub(super) struct Syslog(Option<Logger<LoggerBackend, Formatter3164>>);

impl Syslog {
    /// Opens it; without a syslog daemon nothing is logged there.
    pub(super) fn open() -> Self {
        let formatter = Formatter3164 {
            facility: Facility::LOG_MAIL,
            hostname: None,
            process: "mbcopy".into(),
            pid: std::process::id(),
        };
        Self(syslog::unix(formatter).ok())
    }

    pub(super) fn info(&mut self, text: &str) {
        if let Some(logger) = &mut self.0 {
            let _ = logger.info(text);
        }
    }

    pub(super) fn error(&mut self, text: &str) {
        if let Some(logger) = &mut self.0 {
            let _ = logger.err(text);
        }
    }
}
