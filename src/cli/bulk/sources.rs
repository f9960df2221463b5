//! The servers whose users a run moves: this one, or those that `--from` names.

use super::Failure;
use crate::bulk::store::Served;
use crate::bulk::survey::{self, Survey};
use crate::cli::Common;
use crate::cli::push::local_agent;
use crate::transport::Destination;
use crate::wire::{printable, v1};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What `--from` says of this very server.
const HERE: &str = ".";

/// A server whose users are moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Source {
    /// As it calls itself.
    name: String,
    /// How it is reached; none: it is this one.
    from: Option<String>,
}

/// All of them, and who is there.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub all: Vec<Source>,
    pub survey: Survey,
}

impl Sources {
    /// Asks each who is there, and with how much, if `sizes`. One of several that does
    /// not answer is left out, but for what is `known` of it from an earlier time.
    pub async fn ask(common: &Common, sizes: bool, known: &[Source]) -> Result<Self, Failure> {
        let mut sources = Self::default();
        let hosts: Vec<Option<&String>> = match common.from.as_slice() {
            [] => vec![None],
            named => named.iter().map(|host| (host != HERE).then_some(host)).collect(),
        };
        let mut silent = None;
        for host in &hosts {
            let of_one =
                Common { from: host.iter().map(ToString::to_string).collect(), ..common.clone() };
            match Self::ask_one(&of_one, sizes).await {
                Ok((name, survey)) => {
                    sources.survey.join(survey).map_err(Failure::usage)?;
                    sources.all.push(Source { name, from: host.cloned() });
                }
                Err(error) if hosts.len() > 1 => {
                    let before = known.iter().find(|source| source.from.as_ref() == *host);
                    let what = match before {
                        Some(_) => "its users are tried all the same, but nobody is added",
                        None => "its users are left out",
                    };
                    let host = host.map_or("this server", String::as_str);
                    eprintln!("mbcopy: {host} does not tell who is there, {what}: {}", error.text);
                    sources.all.extend(before.cloned());
                    silent = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match (sources.all.is_empty(), silent) {
            (true, Some(error)) => Err(error),
            _ => Ok(sources),
        }
    }

    async fn ask_one(common: &Common, sizes: bool) -> Result<(String, Survey), Failure> {
        // Another server may be reached later; what this one lacks has to be mended.
        let failed = |error: &dyn std::fmt::Display| match common.from.is_empty() {
            true => Failure::failed(error),
            false => Failure::later(error),
        };
        for from in &common.from {
            Destination::parse(from).map_err(Failure::usage)?;
        }
        let agent = local_agent(common, v1::Role::Inspect).await;
        let (_lifeline, mut peer) = agent.map_err(|e| failed(&e))?;
        let survey = survey::survey(&mut peer, sizes).await.map_err(|e| failed(&e))?;
        Ok((printable(&peer.welcome.servername), survey))
    }
}

/// How those are reached that are not this one, by name.
pub(super) fn routes(sources: &[Source]) -> BTreeMap<String, String> {
    let away = |source: &Source| Some((source.name.clone(), source.from.clone()?));
    sources.iter().filter_map(away).collect()
}

/// What the store is told of them.
pub(super) fn served(sources: &[Source]) -> Vec<Served> {
    let one = |source: &Source| Served { source: source.name.clone(), home: source.from.is_none() };
    sources.iter().map(one).collect()
}
