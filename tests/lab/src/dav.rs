//! A CalDAV and CardDAV client.

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use roxmltree::{Document, Node};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Duration;

/// A client of one user; each request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Dav {
    ip: String,
    user: String,
    authorization: String,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Names, in lower case, and values.
    pub headers: BTreeMap<String, String>,
    /// The content, whole.
    pub body: String,
}

/// Properties by name; of structured ones, what was written between the tags.
pub type Properties = BTreeMap<String, String>;

/// An event, a task or a contact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Changes whenever the content does.
    pub etag: String,
    /// All other properties of it.
    pub properties: Properties,
    /// iCalendar or vCard.
    pub content: String,
}

/// Everything that a client sees of a user: his calendars, address books and principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Collections by path, with their properties.
    pub collections: BTreeMap<String, Properties>,
    /// What is in them, by path.
    pub items: BTreeMap<String, Item>,
}

/// What has changed in a collection: paths, with their ETags or none if they have gone, and
/// the token of now.
pub type Changes = (BTreeMap<String, Option<String>>, String);

const NAMESPACES: &str = "xmlns:D=\"DAV:\" xmlns:C=\"urn:ietf:params:xml:ns:caldav\" \
    xmlns:A=\"urn:ietf:params:xml:ns:carddav\" xmlns:S=\"http://calendarserver.org/ns/\" \
    xmlns:I=\"http://apple.com/ns/ical/\" xmlns:Y=\"http://cyrusimap.org/ns/\"";

/// What clients ask of collections and of what is in them.
const ASKED: &str = "<D:displayname/><D:resourcetype/><D:owner/><D:current-user-privilege-set/>\
    <D:acl/><D:sync-token/><D:getetag/><D:getcontenttype/><D:getcontentlength/>\
    <D:getlastmodified/><D:creationdate/><D:resource-id/><D:supported-report-set/>\
    <D:add-member/><S:getctag/><I:calendar-color/><I:calendar-order/>\
    <C:calendar-description/><C:calendar-timezone/><C:calendar-availability/>\
    <C:supported-calendar-component-set/><C:schedule-calendar-transp/><C:schedule-tag/>\
    <C:schedule-default-calendar-URL/><C:max-resource-size/><A:addressbook-description/>\
    <A:supported-address-data/>";

impl Dav {
    /// A client of this user of a server.
    pub fn new(ip: &str, user: &str, password: &str) -> Self {
        let authorization = STANDARD.encode(format!("{user}:{password}"));
        Self { ip: ip.to_owned(), user: user.to_owned(), authorization }
    }

    /// Where his calendars are.
    pub fn calendars(&self) -> String {
        format!("/dav/calendars/user/{}/", self.user)
    }

    /// Where his address books are.
    pub fn address_books(&self) -> String {
        format!("/dav/addressbooks/user/{}/", self.user)
    }

    /// Sends a request and returns whatever the server answers.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Reply> {
        let mut stream = crate::net::connect(&self.ip, 80, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\
             Authorization: Basic {}\r\nContent-Length: {}\r\n",
            self.authorization,
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("receiving")?;
        Reply::parse(&answer).with_context(|| format!("{method} {path}"))
    }

    /// A request with XML that must succeed.
    fn xml(&self, method: &str, path: &str, depth: &str, body: &str) -> Result<Reply> {
        let headers = [("Content-Type", "application/xml; charset=utf-8"), ("Depth", depth)];
        self.request(method, path, &headers, body)?.succeeded(method, path)
    }

    /// Makes a calendar with these properties, as XML.
    pub fn make_calendar(&self, name: &str, properties: &str) -> Result<String> {
        let path = format!("{}{name}/", self.calendars());
        let body = format!(
            "<C:mkcalendar {NAMESPACES}><D:set><D:prop>{properties}</D:prop></D:set></C:mkcalendar>"
        );
        self.xml("MKCALENDAR", &path, "0", &body)?;
        Ok(path)
    }

    /// Makes an address book with these properties, as XML.
    pub fn make_address_book(&self, name: &str, properties: &str) -> Result<String> {
        let path = format!("{}{name}/", self.address_books());
        let body = format!(
            "<D:mkcol {NAMESPACES}><D:set><D:prop><D:resourcetype><D:collection/><A:addressbook/>\
             </D:resourcetype>{properties}</D:prop></D:set></D:mkcol>"
        );
        self.xml("MKCOL", &path, "0", &body)?;
        Ok(path)
    }

    /// Sets properties, as XML.
    pub fn set(&self, path: &str, properties: &str) -> Result<()> {
        let body = format!(
            "<D:propertyupdate {NAMESPACES}><D:set><D:prop>{properties}</D:prop></D:set>\
             </D:propertyupdate>"
        );
        let reply = self.xml("PROPPATCH", path, "0", &body)?;
        ensure!(!reply.body.contains(" 403 "), "PROPPATCH {path}: {}", reply.body);
        Ok(())
    }

    /// Puts an event, a task or a contact.
    pub fn put(&self, path: &str, content: &str) -> Result<()> {
        let kind = if path.ends_with(".vcf") { "text/vcard" } else { "text/calendar" };
        self.request("PUT", path, &[("Content-Type", kind)], content)?.succeeded("PUT", path)?;
        Ok(())
    }

    /// Replaces what has this ETag; fails if it has another.
    pub fn replace(&self, path: &str, etag: &str, content: &str) -> Result<()> {
        let kind = if path.ends_with(".vcf") { "text/vcard" } else { "text/calendar" };
        let headers = [("Content-Type", kind), ("If-Match", etag)];
        self.request("PUT", path, &headers, content)?.succeeded("PUT", path)?;
        Ok(())
    }

    /// Removes an item or a collection.
    pub fn delete(&self, path: &str) -> Result<()> {
        self.request("DELETE", path, &[], "")?.succeeded("DELETE", path)?;
        Ok(())
    }

    /// The properties of what is at a path and, with depth 1, right below it.
    pub fn properties(&self, path: &str, depth: u8) -> Result<BTreeMap<String, Properties>> {
        let body = format!("<D:propfind {NAMESPACES}><D:prop>{ASKED}</D:prop></D:propfind>");
        let reply = self.xml("PROPFIND", path, &depth.to_string(), &body)?;
        responses(&reply.body)
    }

    /// What has changed since a token; all that there is for an empty one.
    pub fn changes(&self, path: &str, token: &str) -> Result<Changes> {
        let body = format!(
            "<D:sync-collection {NAMESPACES}><D:sync-token>{token}</D:sync-token>\
             <D:sync-level>1</D:sync-level><D:prop><D:getetag/></D:prop></D:sync-collection>"
        );
        let reply = self.xml("REPORT", path, "0", &body)?;
        let document = Document::parse(&reply.body)?;
        let token = document.descendants().find(|n| n.has_tag_name(("DAV:", "sync-token")));
        let token = token.and_then(|n| n.text()).context("no sync-token")?.to_owned();
        let changed = responses(&reply.body)?.into_iter();
        Ok((changed.map(|(path, mut found)| (path, found.remove("getetag"))).collect(), token))
    }

    /// The paths of events within a time, such as `20260101T000000Z`.
    pub fn events(&self, path: &str, start: &str, end: &str) -> Result<Vec<String>> {
        let body = format!(
            "<C:calendar-query {NAMESPACES}><D:prop><D:getetag/></D:prop><C:filter>\
             <C:comp-filter name=\"VCALENDAR\"><C:comp-filter name=\"VEVENT\">\
             <C:time-range start=\"{start}\" end=\"{end}\"/></C:comp-filter></C:comp-filter>\
             </C:filter></C:calendar-query>"
        );
        let reply = self.xml("REPORT", path, "1", &body)?;
        Ok(responses(&reply.body)?.into_keys().collect())
    }

    /// The paths of contacts with this text in a property, such as `EMAIL`.
    pub fn contacts(&self, path: &str, property: &str, text: &str) -> Result<Vec<String>> {
        let body = format!(
            "<A:addressbook-query {NAMESPACES}><D:prop><D:getetag/></D:prop><A:filter>\
             <A:prop-filter name=\"{property}\"><A:text-match>{text}</A:text-match></A:prop-filter>\
             </A:filter></A:addressbook-query>"
        );
        let reply = self.xml("REPORT", path, "1", &body)?;
        Ok(responses(&reply.body)?.into_keys().collect())
    }

    /// All that a client sees.
    pub fn view(&self) -> Result<View> {
        let mut view = View { collections: BTreeMap::new(), items: BTreeMap::new() };
        let principal = format!("/dav/principals/user/{}/", self.user);
        view.collections.extend(self.properties(&principal, 0)?);
        for home in [self.calendars(), self.address_books()] {
            for (path, properties) in self.properties(&home, 1)? {
                if path != home {
                    for (item, properties) in self.properties(&path, 1)? {
                        if item != path {
                            view.items.insert(item.clone(), self.item(&item, properties)?);
                        }
                    }
                }
                view.collections.insert(path, properties);
            }
        }
        Ok(view)
    }

    fn item(&self, path: &str, mut properties: Properties) -> Result<Item> {
        let reply = self.request("GET", path, &[], "")?.succeeded("GET", path)?;
        let etag = reply.headers.get("etag").cloned().unwrap_or_default();
        let told = properties.remove("getetag");
        ensure!(told.as_ref() == Some(&etag), "{path}: GET says {etag}, PROPFIND {told:?}");
        Ok(Item { etag, properties, content: reply.body })
    }
}

impl Reply {
    fn parse(bytes: &[u8]) -> Result<Reply> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").context("no end of headers")?;
        let (head, body) = bytes.split_at(end + 4);
        let head = String::from_utf8_lossy(head);
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split(' ').nth(1)).context("no status")?;
        let headers: BTreeMap<_, _> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let chunked = headers.get("transfer-encoding").is_some_and(|v| v.contains("chunked"));
        let body = if chunked { unchunked(body)? } else { body.to_vec() };
        Ok(Reply { status: status.parse()?, headers, body: String::from_utf8_lossy(&body).into() })
    }

    /// Fails unless the request was done.
    pub fn succeeded(self, method: &str, path: &str) -> Result<Reply> {
        ensure!(self.status / 100 == 2, "{method} {path}: {} {}", self.status, self.body.trim());
        Ok(self)
    }
}

fn unchunked(mut body: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n").context("no size of a chunk")?;
        let size = std::str::from_utf8(&body[..end])?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        let chunk = body.get(end + 2..end + 2 + size).context("a chunk is cut off")?;
        whole.extend_from_slice(chunk);
        body = body.get(end + 4 + size..).context("a chunk is cut off")?;
    }
}

/// The responses of a multistatus by path, with the properties that were found.
fn responses(body: &str) -> Result<BTreeMap<String, Properties>> {
    let document = Document::parse(body).with_context(|| format!("no XML: {body:.200}"))?;
    let dav = |node: &Node<'_, '_>, name| node.has_tag_name(("DAV:", name));
    let mut all = BTreeMap::new();
    for response in document.descendants().filter(|n| dav(n, "response")) {
        let text = |name| response.children().find(|n| dav(n, name)).and_then(|n| n.text());
        let Some(path) = text("href") else { bail!("a response without a path") };
        let mut properties = Properties::new();
        for found in response.children().filter(|n| dav(n, "propstat")) {
            let status = found.children().find(|n| dav(n, "status")).and_then(|n| n.text());
            if !status.is_some_and(|s| s.contains(" 200 ")) {
                continue;
            }
            for property in found.children().filter(|n| dav(n, "prop")).flat_map(|n| n.children()) {
                let written = property.children().map(|n| &body[n.range()]).collect::<String>();
                let written = match property.text().filter(|_| property.children().count() == 1) {
                    Some(text) => text.trim().to_owned(),
                    None => written,
                };
                properties.insert(property.tag_name().name().to_owned(), written);
            }
        }
        all.insert(path.to_owned(), properties);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_in_chunks_are_put_together() {
        let reply =
            b"HTTP/1.1 207 Multi-Status\r\nTransfer-Encoding: chunked\r\nETag: \"x\"\r\n\r\n\
            4\r\nabcd\r\n2;a=b\r\nef\r\n0\r\n\r\n";
        let reply = Reply::parse(reply).expect("a reply");
        assert_eq!((reply.status, reply.body.as_str()), (207, "abcdef"));
        assert_eq!(reply.headers["etag"], "\"x\"");
    }

    #[test]
    fn only_properties_that_were_found_are_told() {
        let body = "<d:multistatus xmlns:d=\"DAV:\"><d:response><d:href>/x/</d:href><d:propstat>\
            <d:prop><d:displayname><![CDATA[A & B]]></d:displayname><d:resourcetype>\
            <d:collection/></d:resourcetype></d:prop><d:status>HTTP/1.1 200 OK</d:status>\
            </d:propstat><d:propstat><d:prop><d:getetag/></d:prop>\
            <d:status>HTTP/1.1 404 Not Found</d:status></d:propstat></d:response></d:multistatus>";
        let found = &responses(body).expect("a multistatus")["/x/"];
        assert_eq!(found["displayname"], "A & B");
        assert_eq!(found["resourcetype"], "<d:collection/>");
        assert_eq!(found.len(), 2);
    }
}
