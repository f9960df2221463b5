//! The machine under the measurements.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::{Command, Stdio};

/// Takes memory and gives it back: on a virtual machine the first use of a page may wait for the
/// host, which would be charged to whatever is measured first.
pub fn touch_memory() {
    let mut memory = vec![0u8; 3 << 30];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
}

/// Copies lib, spool and sieve; messages are linked.
pub const CLONE: &str = r#"
for part in lib spool sieve; do
  mkdir -p "$2/$part"
  cp -al "$1/$part/." "$2/$part/"
  cd "$1/$part"
  find . -type f -regextype posix-extended ! -regex '.*/[0-9]+\.' -print0 |
    xargs -0r cp -a --parents --remove-destination -t "$2/$part"
done"#;

/// Moves what lib, spool and sieve hold out of the way.
pub const THROW_AWAY: &str = r#"
for part in lib spool sieve; do
  mkdir -p "$2/$part"
  find "$1/$part" -mindepth 1 -maxdepth 1 -exec mv -t "$2/$part" {} +
done"#;

/// Runs a script.
pub fn shell(script: &str, arguments: &[&Path]) -> Result<()> {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "bench"]).args(arguments);
    let output = command.stdin(Stdio::null()).output().context("starting bash")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, stderr.trim());
    Ok(())
}

/// Forgets what is in the page cache.
pub fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("the page cache cannot be dropped here")
}

/// All of the processors' time since the machine started, and what was idle of it.
pub fn cpu_times() -> Result<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let first = stat.lines().next().unwrap_or_default();
    let times: Vec<u64> = first.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    ensure!(times.len() >= 8, "strange /proc/stat: {first}");
    // user nice system idle iowait irq softirq steal; the rest is part of these
    Ok((times[..8].iter().sum(), times[3] + times[4]))
}

/// What was measured several times.
pub struct Sample {
    n: usize,
    pub median: f64,
    min: f64,
    pub max: f64,
}

impl Sample {
    /// Not of nothing.
    pub fn of(values: &[f64]) -> Sample {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        Sample { n, median, min: sorted[0], max: sorted[n - 1] }
    }

    /// What this part of the values does not go beyond; not of nothing.
    pub fn percentile(values: &[f64], part: f64) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * part).round() as usize]
    }

    pub fn show(&self, digits: usize) -> String {
        let Sample { n, median, min, max } = self;
        format!("{n} | {median:.digits$} | {min:.digits$} | {max:.digits$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        for (values, median) in [(&[3.0][..], 3.0), (&[9.0, 1.0, 2.0], 2.0), (&[1.0, 4.0], 2.5)] {
            assert_eq!(Sample::of(values).median, median);
        }
        let sample = Sample::of(&[2.0, 1.0, 6.0]);
        assert_eq!(sample.show(1), "3 | 2.0 | 1.0 | 6.0");
        let hundred: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(Sample::percentile(&hundred, 0.99), 99.0);
    }
}
