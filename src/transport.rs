//! stopgap
use crate::push::peer::Streams;
/// d
#[derive(Debug, Clone)]
pub struct Destination(String);
impl Destination {
    /// p
    pub fn parse_with_partition(text: &str) -> Result<(Self, Option<String>), String> {
        let (host, partition) = match text.split_once(':') {
            Some((h, p)) => (h, Some(p.to_owned())),
            None => (text, None),
        };
        Ok((Self(host.into()), partition))
    }
    /// h
    pub fn host(&self) -> &str {
        &self.0
    }
}
/// s
pub struct Session(String, std::sync::Mutex<Vec<tokio::process::Child>>);
impl Session {
    /// c
    pub async fn connect(d: &Destination) -> Result<Self, std::io::Error> {
        Ok(Self(d.0.clone(), Default::default()))
    }
    /// n
    pub fn name(&self) -> &str {
        &self.0
    }
    /// e
    pub async fn exec(&self, words: &[&String]) -> Result<Streams, std::io::Error> {
        let mut args = vec![self.0.clone().into()];
        args.extend(words.iter().map(std::ffi::OsString::from));
        let (child, streams) = crate::push::local::spawn("ssh".into(), &args)?;
        if let Ok(mut c) = self.1.lock() {
            c.push(child);
        }
        Ok(streams)
    }
}
