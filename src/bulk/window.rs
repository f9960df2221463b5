//! Times of day in which moves may begin: `22:00-05:00`, several with commas. Pure.

use std::str::FromStr;

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// Times of day; none means always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows(Vec<(u16, u16)>);

/// A window that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no window; write 22:00-05:00")]
pub struct NotAWindow(String);

impl Windows {
    /// Whether a move may begin at this minute of the day.
    pub fn is_open(&self, minute: u16) -> bool {
        self.0.is_empty() || self.0.iter().any(|window| within(*window, minute))
    }

    /// Minutes until a window opens; 0 while one is open.
    pub fn opens_in(&self, minute: u16) -> u16 {
        if self.is_open(minute) {
            return 0;
        }
        self.0.iter().map(|(begin, _)| (begin + DAY - minute) % DAY).min().unwrap_or(0)
    }
}

fn within((begin, end): (u16, u16), minute: u16) -> bool {
    match begin < end {
        true => (begin..end).contains(&minute),
        // Over midnight.
        false => minute >= begin || minute < end,
    }
}

impl FromStr for Windows {
    type Err = NotAWindow;

    fn from_str(text: &str) -> Result<Self, NotAWindow> {
        let wrong = || NotAWindow(text.to_owned());
        let minute = |time: &str| -> Option<u16> {
            let (hour, minute) = time.trim().split_once(':')?;
            let two = |digits: &str| -> Option<u16> {
                let is =
                    (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
                digits.parse().ok().filter(|_| is)
            };
            let (hour, minute) = (two(hour)?, two(minute)?);
            (hour < 24 && minute < 60 || hour == 24 && minute == 0)
                .then_some((hour * 60 + minute) % DAY)
        };
        let windows = text.split(',').map(|window| {
            let (begin, end) = window.split_once('-').ok_or_else(wrong)?;
            let both = (minute(begin).ok_or_else(wrong)?, minute(end).ok_or_else(wrong)?);
            if both.0 == both.1 { Err(wrong()) } else { Ok(both) }
        });
        windows.collect::<Result<_, _>>().map(Self)
    }
}

impl std::fmt::Display for Windows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (begin, end)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let time = |minute: &u16| format!("{:02}:{:02}", minute / 60, minute % 60);
            write!(f, "{comma}{}-{}", time(begin), time(end))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: u16, minute: u16) -> u16 {
        hour * 60 + minute
    }

    #[test]
    fn over_midnight_and_not() {
        let night: Windows = "22:00-05:00".parse().unwrap();
        for (minute, open, until) in [
            (at(22, 0), true, 0),
            (at(23, 59), true, 0),
            (at(4, 59), true, 0),
            (at(5, 0), false, 17 * 60),
            (at(21, 59), false, 1),
        ] {
            assert_eq!((night.is_open(minute), night.opens_in(minute)), (open, until), "{minute}");
        }
        let two: Windows = "1:00-2:00, 12:30-13:00".parse().unwrap();
        assert!(two.is_open(at(1, 30)) && two.is_open(at(12, 30)) && !two.is_open(at(13, 0)));
        assert_eq!(two.opens_in(at(13, 0)), 12 * 60);
        assert_eq!(two.to_string(), "01:00-02:00,12:30-13:00");
        assert!(Windows::default().is_open(0));
        assert!("20:00-24:00".parse::<Windows>().unwrap().is_open(at(23, 59)));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "22:00", "22-5", "22:00-22:00", "25:00-1:00", "1:60-2:00", "+1:00-2:00"] {
            assert!(text.parse::<Windows>().is_err(), "{text}");
        }
    }
}
