//! Quoting towards the remote shell, and making foreign text safe to show.

/// Quotes one word so that every POSIX shell hands it on unchanged.
///
/// sshd always gives the command to the login shell of the user, so quoting is the only thing between a
/// word and its interpretation.  Every word is quoted, also the harmless ones: a rule without exceptions
/// has no wrong exception (`if`, `a=b`, `~x` are all harmless looking).
#[must_use]
pub fn quote(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('\'');
    for c in word.chars() {
        if c == '\'' {
            quoted.push_str("'\\''");
        } else {
            quoted.push(c);
        }
    }
    quoted.push('\'');
    quoted
}

/// Joins the words of a command, each quoted, with single spaces.
#[must_use]
pub fn join_quoted<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(|word| quote(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// Splits what [`join_quoted`] made, and refuses everything else.
///
/// Meant for an agent behind a forced command, which finds the wish of its peer in
/// `SSH_ORIGINAL_COMMAND` and must not let a shell look at it.
#[must_use]
pub fn split_quoted(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = command;
    loop {
        let mut word = String::new();
        loop {
            rest = rest.strip_prefix('\'')?;
            let (piece, after) = rest.split_once('\'')?;
            word.push_str(piece);
            rest = after;
            let Some(after) = rest.strip_prefix("\\'") else {
                break;
            };
            word.push('\'');
            rest = after;
        }
        words.push(word);
        if rest.is_empty() {
            return Some(words);
        }
        rest = rest.strip_prefix(' ')?;
    }
}

/// Makes text from outside safe for a terminal or a log.
///
/// Line feeds and tabs stay.  Other control characters, and the characters that reorder or hide text,
/// are shown as `\x1b` or `\u{202e}`; a carriage return before a line feed is dropped.
#[must_use]
pub fn neutralise(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut safe = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => safe.push(c),
            '\r' if chars.peek() == Some(&'\n') => {}
            c if c.is_ascii_control() => safe.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}') =>
            {
                safe.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
            }
            c => safe.push(c),
        }
    }
    safe
}

/// Makes foreign text safe, on one line and at most `limit` characters long.
pub(super) fn one_line(bytes: &[u8], limit: usize) -> String {
    let safe = neutralise(bytes);
    let joined =
        safe.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    if joined.chars().count() <= limit {
        joined
    } else {
        joined.chars().take(limit).chain("...".chars()).collect()
    }
}

/// Gives random hexadecimal text, `bytes` bytes worth.
pub(super) fn random_hex(bytes: usize) -> std::io::Result<String> {
    Ok(random_bytes(bytes)?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Gives random bytes from the kernel.
pub(super) fn random_bytes(count: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = vec![0; count];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_everything() {
        assert_eq!(quote(""), "''");
        assert_eq!(quote("ls"), "'ls'");
        assert_eq!(quote("a'b"), r"'a'\''b'");
        assert_eq!(join_quoted(&["a b", "$(x)"]), "'a b' '$(x)'");
    }

    #[test]
    fn splits_only_its_own_quoting() {
        assert_eq!(split_quoted("'a' 'b c'"), Some(vec!["a".to_owned(), "b c".to_owned()]));
        for wrong in ["", "a", "'a", "'a' ", "'a'  'b'", "'a';'b'", "'a'b", "'a'\\''", "'a' 'b"] {
            assert_eq!(split_quoted(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn quoting_survives_the_way_back(words in prop::collection::vec("[^\\x00]{0,12}", 1..5)) {
            prop_assert_eq!(split_quoted(&join_quoted(&words)), Some(words));
        }

        #[test]
        fn neutral_text_has_no_control_characters(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(neutralise(&bytes).chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
        }
    }

    #[test]
    fn a_real_shell_agrees_with_the_quoting() {
        let words = ["a b", "'", "$HOME", "`id`", "\\", "*", "\n", "", "-n", "é\u{1b}["];
        let command = format!("printf '%s\\0' {}", join_quoted(&words));
        let output = std::process::Command::new("sh").arg("-c").arg(&command).output().unwrap();
        let seen: Vec<_> = output.stdout.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        let mut wanted: Vec<_> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        wanted.push(Vec::new());
        assert_eq!(seen, wanted);
    }

    #[test]
    fn escapes_are_shown_not_obeyed() {
        assert_eq!(neutralise(b"a\x1b[31mb\r\nc\rd\te\x7f"), "a\\x1b[31mb\nc\\x0dd\te\\x7f");
        assert_eq!(neutralise("x\u{202e}y\u{9b}".as_bytes()), "x\\u{202e}y\\u{9b}");
        assert_eq!(one_line(b"one\n\n two\n", 80), "one; two");
        assert_eq!(one_line(b"abcdef", 3), "abc...");
    }
}
