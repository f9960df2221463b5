//! A browser without a screen, which looks at the report of a run as people would.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// A screen, by its name and its size.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// What it is.
    pub name: &'static str,
    /// Its width.
    pub width: u32,
    /// Its height.
    pub height: u32,
}

/// The screens that pages are looked at on.
pub const SCREENS: [Screen; 2] = [
    Screen { name: "desktop", width: 1280, height: 900 },
    Screen { name: "phone", width: 390, height: 844 },
];

/// Tells in the page itself what a reader would see of it in a frame of this width.
const LOOK: &str = "<script>onload = function () {
  var frame = document.querySelector('iframe'), page = frame.contentDocument, view = frame.contentWindow;
  var root = page.documentElement, seen = { width: view.innerWidth, scroll: root.scrollWidth };
  var all = function (what) { return [].slice.call(page.querySelectorAll(what)); };
  var box = function (e) { return e.getBoundingClientRect(); };
  var shown = function (what) { return all(what).filter(function (e) { return box(e).height > 0; }); };
  var named = function (e) { return e.tagName + ': ' + e.textContent.slice(0, 60); };
  var lines = function (e) {
    var range = page.createRange(), tops = {};
    range.selectNodeContents(e);
    [].forEach.call(range.getClientRects(), function (r) { tops[Math.round(r.top)] = true; });
    return Object.keys(tops).length; };
  seen.rows = shown('#users tbody tr').length;
  seen.bars = shown('#throughput rect').length;
  seen.classes = shown('#freezes i').length;
  seen.head = shown('#users thead').length;
  seen.tall = box(root).height;
  seen.outside = shown('main *').filter(function (e) { return box(e).right > view.innerWidth + 1; }).map(named);
  seen.cut = shown('main *').filter(function (e) {
    return e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1; }).map(named);
  seen.small = shown('main *').filter(function (e) {
    return parseFloat(view.getComputedStyle(e).fontSize) < 11; }).map(named);
  seen.broken = shown('#users span, #users th, #users td:nth-child(-n+7), .tile b, button').filter(function (e) {
    return e.textContent.length < 20 && lines(e) > 1; }).map(named);
  seen.squeezed = shown('#users td').filter(function (e) {
    return e.textContent.length > 20 && box(e).width < 120; }).map(named);
  seen.pressed = {};
  all('button[data-state]').forEach(function (b) {
    b.click();
    seen.pressed[b.dataset.state] = shown('#users tbody tr').length; });
  document.body.textContent = 'SEEN' + JSON.stringify(seen) + 'END';
}</script>";

/// Puts a page into a frame, since a window cannot be made as narrow as a phone; it must
/// be in this directory, in which more files are made.
fn frame(directory: &Path, page: &str, width: u32, height: u32, script: &str) -> Result<String> {
    let file = directory.join(format!("frame-of-{width}.html"));
    let html = format!(
        "<!doctype html><meta charset=\"utf-8\"><body style=\"margin:0\"><iframe src=\"{page}\" \
         style=\"border:0;width:{width}px;height:{height}px\"></iframe>{script}"
    );
    std::fs::write(&file, html)?;
    Ok(format!("file://{}", file.display()))
}

/// What a reader sees of a page in this directory on such a screen: `width`, and how wide it
/// is to be scrolled (`scroll`), `tall`, what is shown (`rows`, `bars`, `classes`, `head`),
/// what cannot be read well (`outside`, `cut`, `small`, `broken`, `squeezed`), and how many
/// rows each button leaves (`pressed`).
pub fn look(directory: &Path, page: &str, screen: Screen) -> Result<Value> {
    let url = frame(directory, page, screen.width, screen.height, LOOK)?;
    let words = ["--allow-file-access-from-files", "--dump-dom", &url].map(str::to_owned);
    let dom = chromium(directory, &words)?;
    let seen = dom.split_once("SEEN").and_then(|(_, rest)| rest.split_once("END"));
    let (seen, _) = seen.with_context(|| format!("nothing was seen: {dom}"))?;
    let seen = [("&quot;", "\""), ("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", " "), ("&amp;", "&")]
        .iter()
        .fold(seen.to_owned(), |text, (from, to)| text.replace(from, to));
    serde_json::from_str(&seen).with_context(|| format!("on a {}: {seen}", screen.name))
}

/// What of that cannot be read well, in words; nothing, if all is as it should be.
pub fn unreadable(seen: &Value) -> Vec<String> {
    let mut wrong: Vec<String> = ["outside", "cut", "small", "broken", "squeezed"]
        .iter()
        .filter(|what| seen[**what] != serde_json::json!([]))
        .map(|what| format!("{what}: {}", seen[*what]))
        .collect();
    if seen["scroll"] != seen["width"] {
        wrong.push(format!("it is {} wide on a screen of {}", seen["scroll"], seen["width"]));
    }
    wrong
}

/// A picture of all of a page in this directory, as such a screen would show it.
pub fn picture(directory: &Path, page: &str, screen: Screen, to: &Path) -> Result<()> {
    let tall = look(directory, page, screen)?["tall"].as_f64().unwrap_or(0.0);
    // What is longer than that is more of the same.
    let height = (tall as u32).clamp(screen.height, 4000);
    let url = frame(directory, page, screen.width, height, "")?;
    chromium(
        directory,
        &[
            format!("--screenshot={}", to.display()),
            format!("--window-size={},{height}", screen.width.max(500)),
            url,
        ],
    )?;
    Ok(())
}

fn chromium(directory: &Path, arguments: &[String]) -> Result<String> {
    let mut command = Command::new("chromium");
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--virtual-time-budget=5000",
    ]);
    command.arg(format!("--user-data-dir={}", directory.join("profile").display()));
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.context("chromium does not start; `make tools` installs it")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
