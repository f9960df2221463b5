//! Calendars and address books, as a CalDAV and CardDAV client sees them.

use crate::support::{PutBack, Servers};
use lab::dav::{Changes, Dav, Properties, View};
use lab::host::Host;
use std::collections::BTreeMap;

/// What the servers need for it; their answers bear no mark of the release.
const OPTIONS: &[(&str, &str)] = &[("httpmodules", "caldav carddav")];

/// Servers with calendars and address books.
fn servers(source: &str, target: &str) -> (Servers, PutBack) {
    let (servers, put_back) = Servers::with_options((source, OPTIONS), (target, OPTIONS));
    servers.accounts(&["dave"]);
    let mut admin = servers.source.admin().unwrap();
    admin.command("CREATE user.dave").unwrap();
    (servers, put_back)
}

fn event(uid: &str, rest: &str) -> String {
    format!(
        "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//lab//EN\r\nBEGIN:VEVENT\r\nUID:{uid}\r\n\
         DTSTAMP:20260101T000000Z\r\n{rest}END:VEVENT\r\nEND:VCALENDAR\r\n"
    )
}

fn contact(uid: &str, name: &str, rest: &str) -> String {
    format!(
        "BEGIN:VCARD\r\nVERSION:3.0\r\nUID:{uid}\r\nFN:{name}\r\nN:{name};;;;\r\n{rest}\
         END:VCARD\r\n"
    )
}

/// Calendars and address books with all that clients put into them; some of it has been
/// changed and deleted since.
fn seed(dav: &Dav) {
    // The first look makes what every user has.
    dav.view().unwrap();
    let work = dav
        .make_calendar(
            "work",
            "<D:displayname>Arbeit &amp; Spaß</D:displayname>\
             <C:calendar-description>what there is to do</C:calendar-description>\
             <I:calendar-color>#FF2968FF</I:calendar-color><I:calendar-order>3</I:calendar-order>\
             <C:supported-calendar-component-set><C:comp name=\"VEVENT\"/><C:comp name=\"VTODO\"/>\
             </C:supported-calendar-component-set>",
        )
        .unwrap();
    dav.set(&work, "<I:calendar-color>#0088FFFF</I:calendar-color>").unwrap();
    let weekly = "DTSTART:20260105T090000Z\r\nDURATION:PT1H\r\nSUMMARY:weekly\r\n\
        RRULE:FREQ=WEEKLY;COUNT=9\r\nEXDATE:20260112T090000Z\r\nEND:VEVENT\r\nBEGIN:VEVENT\r\n\
        UID:weekly\r\nDTSTAMP:20260101T000000Z\r\nRECURRENCE-ID:20260119T090000Z\r\n\
        DTSTART:20260120T100000Z\r\nDURATION:PT2H\r\nSUMMARY:another time\r\n";
    let alarm = "DTSTART;VALUE=DATE:20260301\r\nSUMMARY:Grüße 📅\r\nBEGIN:VALARM\r\n\
        ACTION:DISPLAY\r\nDESCRIPTION:soon\r\nTRIGGER:-PT15M\r\nEND:VALARM\r\n";
    let plain = "DTSTART:20260201T120000Z\r\nDTEND:20260201T130000Z\r\nSUMMARY:plain\r\n";
    for (name, content) in [("weekly", event("weekly", weekly)), ("day", event("day", alarm))] {
        dav.put(&format!("{work}{name}.ics"), &content).unwrap();
    }
    for n in 0..20 {
        let content = event(&format!("plain{n}"), &plain.replace("plain", &format!("plain {n}")));
        dav.put(&format!("{work}plain{n}.ics"), &content).unwrap();
    }
    let task = event("task", "SUMMARY:task\r\nDUE:20260401T000000Z\r\n").replace("VEVENT", "VTODO");
    dav.put(&format!("{work}task.ics"), &task).unwrap();
    dav.put(&format!("{work}plain1.ics"), &event("plain1", &plain.replace("plain", "moved")))
        .unwrap();
    dav.delete(&format!("{work}plain2.ics")).unwrap();
    dav.put(&format!("{}Default/own.ics", dav.calendars()), &event("own", plain)).unwrap();

    let friends = dav
        .make_address_book(
            "friends",
            "<D:displayname>Freundinnen</D:displayname>\
             <A:addressbook-description>of all kinds</A:addressbook-description>",
        )
        .unwrap();
    let photo = format!("PHOTO;ENCODING=b;TYPE=JPEG:{}\r\n", "QUJD".repeat(5000));
    let anna = format!("EMAIL;TYPE=PREF:anna@example.org\r\nNICKNAME:an\r\n{photo}");
    dav.put(&format!("{friends}anna.vcf"), &contact("anna", "Anna Müller", &anna)).unwrap();
    for n in 0..5 {
        let mail = format!("EMAIL:b{n}@example.org\r\n");
        let content = contact(&format!("b{n}"), &format!("Bert {n}"), &mail);
        dav.put(&format!("{friends}b{n}.vcf"), &content).unwrap();
    }
    dav.delete(&format!("{friends}b3.vcf")).unwrap();
    let group = "X-ADDRESSBOOKSERVER-KIND:group\r\nX-ADDRESSBOOKSERVER-MEMBER:urn:uuid:anna\r\n";
    dav.put(&format!("{friends}group.vcf"), &contact("group", "some", group)).unwrap();
}

/// What a client knows when it goes: what each collection has, and their tokens.
fn tokens(dav: &Dav, view: &View) -> BTreeMap<String, Changes> {
    let collections = view.collections.iter().filter(|(_, p)| p.contains_key("sync-token"));
    collections.map(|(path, _)| (path.clone(), dav.changes(path, "").unwrap())).collect()
}

/// What clients find by asking for it, which the server knows from dav.db.
fn queries(dav: &Dav) -> Vec<Vec<String>> {
    let work = format!("{}work/", dav.calendars());
    let friends = format!("{}friends/", dav.address_books());
    let mut found = vec![
        dav.events(&work, "20260119T000000Z", "20260121T000000Z").unwrap(),
        dav.events(&work, "20260201T000000Z", "20260202T000000Z").unwrap(),
        dav.contacts(&friends, "EMAIL", "anna@").unwrap(),
        dav.contacts(&friends, "FN", "Bert").unwrap(),
    ];
    found.iter_mut().for_each(|paths| paths.sort());
    assert!(found.iter().all(|paths| !paths.is_empty()), "{found:?}");
    found
}

/// A client goes on with what it knows: nothing has changed; what it changes is told.
fn goes_on(dav: &Dav, known: &BTreeMap<String, Changes>, mark: &str) {
    for (path, (_, token)) in known {
        let (changed, now) = dav.changes(path, token).unwrap();
        assert!(changed.is_empty(), "{path}: {changed:?}");
        assert_eq!(&now, token, "{path}");
    }
    let work = format!("{}work/", dav.calendars());
    let (all, token) = &known[&work];
    let plain = format!("DTSTART:20260501T120000Z\r\nDURATION:PT1H\r\nSUMMARY:{mark}\r\n");
    let paths = |names: [&str; 3]| names.map(|name| format!("{work}{name}{mark}.ics"));
    let [fresh, changed, gone] = paths(["fresh", "plain5", "plain6"])
        .map(|p| if all.contains_key(&p) || p.contains("fresh") { p } else { p.replace(mark, "") });
    dav.put(&fresh, &event(&format!("fresh{mark}"), &plain)).unwrap();
    let etag = all[&changed].clone().unwrap();
    dav.replace(&changed, &etag, &event("plain5", &plain)).unwrap();
    assert!(dav.replace(&changed, &etag, &event("plain5", &plain)).is_err(), "an old ETag counts");
    if all.contains_key(&gone) {
        dav.delete(&gone).unwrap();
    }
    let (told, _) = dav.changes(&work, token).unwrap();
    let mut expected = vec![fresh.clone(), changed.clone()];
    expected.extend(all.contains_key(&gone).then_some(gone.clone()));
    expected.sort();
    assert_eq!(told.keys().cloned().collect::<Vec<_>>(), expected);
    assert!(told.get(&gone).is_none_or(Option::is_none), "{told:?}");
    let in_may = dav.events(&work, "20260501T000000Z", "20260502T000000Z").unwrap();
    assert!(in_may.contains(&fresh) && in_may.contains(&changed), "{in_may:?}");

    let friends = format!("{}friends/", dav.address_books());
    let card = format!("{friends}fresh{mark}.vcf");
    let mail = format!("EMAIL:fresh{mark}@example.org\r\n");
    dav.put(&card, &contact(&format!("fresh{mark}"), "Fresh", &mail)).unwrap();
    assert_eq!(
        dav.contacts(&friends, "EMAIL", &format!("fresh{mark}@")).unwrap(),
        std::slice::from_ref(&card)
    );
    dav.delete(&card).unwrap();
    assert_eq!(dav.contacts(&friends, "EMAIL", &format!("fresh{mark}@")).unwrap().len(), 0);
    let made = dav.make_calendar(&format!("made{mark}"), "").unwrap();
    dav.put(&format!("{made}x.ics"), &event(&format!("x{mark}"), &plain)).unwrap();
    dav.delete(&made).unwrap();
}

#[track_caller]
fn assert_same(before: &View, after: &View, known: &[&str]) {
    let without = |view: &View| {
        let mut view = view.clone();
        for properties in view.collections.values_mut() {
            // When its cyrus.header was last written on this server's disk.
            properties.remove("creationdate");
        }
        let items = view.items.values_mut().map(|item| &mut item.properties);
        for properties in view.collections.values_mut().chain(items) {
            properties.retain(|name, _| !known.contains(&name.as_str()));
        }
        view
    };
    let (before, after) = (without(before), without(after));
    let names = |view: &View| view.items.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after));
    for (path, item) in &before.items {
        assert_eq!(item, &after.items[path], "{path}");
    }
    for (path, properties) in &before.collections {
        assert_eq!(Some(properties), after.collections.get(path), "{path}");
    }
    assert_eq!(before.collections.len(), after.collections.len());
}

/// The server's own Cyrus finds nothing to mend.
#[track_caller]
fn accepted(host: &Host) {
    let command = ["/usr/lib/cyrus/bin/reconstruct", "-n", "-q", "-u", "dave"];
    let output = host.exec_as_cyrus(&command).unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let complaints = said.lines().filter(|line| !line.contains("mismatch: sentdate"));
    assert_eq!(complaints.collect::<Vec<_>>(), Vec::<&str>::new());
}

fn there_and_back(source: &str, target: &str, known: &[&str]) {
    let (servers, _put_back) = servers(source, target);
    let (here, there) = (servers.source.dav("dave"), servers.target.dav("dave"));
    seed(&here);
    let before = here.view().unwrap();
    assert!(before.collections.len() >= 8, "{:?}", before.collections.keys());
    assert!(before.items.len() >= 28, "{:?}", before.items.keys());
    let (found, tokens_before) = (queries(&here), tokens(&here, &before));
    servers.push("user.dave", &[]).expect(0);
    accepted(&servers.target);
    assert_same(&before, &there.view().unwrap(), known);
    assert_eq!(found, queries(&there));
    goes_on(&there, &tokens_before, "t");

    let before = there.view().unwrap();
    let (found, tokens_before) = (queries(&there), tokens(&there, &before));
    servers.mbcopy(&["reverse", "user.dave"]).expect(0);
    accepted(&servers.source);
    assert_same(&before, &here.view().unwrap(), known);
    assert_eq!(found, queries(&here));
    goes_on(&here, &tokens_before, "b");
}

#[test]
fn a_client_sees_them_unchanged() {
    there_and_back("bw1", "bw2", &[]);
}

/// The target has no httpd for them: they move, the admin is told, and they are as they
/// were when they come back.
#[test]
#[ignore = "long: for `make matrix`"]
fn they_move_to_a_server_that_does_not_serve_them() {
    let (servers, _put_back) = Servers::with_options(("bw1", OPTIONS), ("bw2", &[]));
    servers.accounts(&["dave"]);
    servers.source.admin().unwrap().command("CREATE user.dave").unwrap();
    let here = servers.source.dav("dave");
    seed(&here);
    let before = here.view().unwrap();
    let known = tokens(&here, &before);
    servers.push("user.dave", &["--dry-run"]).expect(0).says(&["caldav", "carddav", "httpmodules"]);
    servers.push("user.dave", &[]).expect(0).says(&["calendars", "address books"]);
    accepted(&servers.target);
    servers.mbcopy(&["reverse", "user.dave"]).expect(0);
    accepted(&servers.source);
    assert_same(&before, &here.view().unwrap(), &[]);
    goes_on(&here, &known, "b");
}

/// Alarms that the server sends are known to the target after what the push advises, which
/// changes nothing that a client sees.
#[test]
#[ignore = "long: for `make matrix`"]
fn alarms_are_known_after_dav_reconstruct() {
    let (servers, _put_back) = servers("bw1", "bw2");
    let (here, there) = (servers.source.dav("dave"), servers.target.dav("dave"));
    seed(&here);
    let alarm = "DTSTART:20500301T100000Z\r\nDURATION:PT1H\r\nSUMMARY:far\r\nBEGIN:VALARM\r\nACTION:DISPLAY\r\n\
        DESCRIPTION:soon\r\nTRIGGER:-PT15M\r\nEND:VALARM\r\n";
    here.put(&format!("{}Default/far.ics", here.calendars()), &event("far", alarm)).unwrap();
    let before = here.view().unwrap();
    let known = tokens(&here, &before);
    let alarms = |host: &Host| {
        let ask = "sqlite3 /var/lib/cyrus/caldav_alarm.sqlite3 \
                   \"SELECT count(*) FROM events WHERE mboxname LIKE 'user.dave.%'\" || true";
        host.run_as_cyrus(&["sh", "-c", ask]).unwrap().trim().parse::<u32>().unwrap_or(0)
    };
    assert!(alarms(&servers.source) > 0);
    servers.push("user.dave", &[]).expect(0).says(&["alarms", "dav_reconstruct dave"]);
    assert_eq!(alarms(&servers.target), 0);
    servers.target.run_as_cyrus(&["/usr/lib/cyrus/bin/dav_reconstruct", "dave"]).unwrap();
    assert!(alarms(&servers.target) > 0);
    let after = there.view().unwrap();
    assert_same(&before, &after, &["creationdate"]);
    queries(&there);
    goes_on(&there, &known, "t");
}

/// 3.2 has another dav.db, which names mailboxes by name: it is made anew.
#[test]
#[ignore = "long: for `make versions`"]
fn versions_3_2_to_3_6() {
    let (servers, _put_back) = servers("bull", "bw1");
    let (here, there) = (servers.source.dav("dave"), servers.target.dav("dave"));
    seed(&here);
    let before = here.view().unwrap();
    let tokens_before = tokens(&here, &before);
    servers.push("user.dave", &[]).expect(0);
    accepted(&servers.target);
    let after = there.view().unwrap();
    // What a release tells of itself is another's; what the user has put there is his.
    let of_user = |view: &View| {
        let items = view.items.iter();
        let items =
            items.map(|(path, item)| (path.clone(), item.etag.clone(), item.content.clone()));
        let told = ["displayname", "calendar-color", "calendar-order", "calendar-description"];
        let shown = |properties: &Properties| {
            told.map(|name| properties.get(name).cloned().unwrap_or_default())
        };
        let collections = view.collections.iter().map(|(path, p)| (path.clone(), shown(p)));
        (items.collect::<Vec<_>>(), collections.collect::<BTreeMap<_, _>>())
    };
    let [(before, collections), (items, moved)] = [of_user(&before), of_user(&after)];
    assert_eq!(before, items);
    for (path, properties) in collections.iter().filter(|(path, _)| path.contains("/user/dave/")) {
        assert_eq!(Some(properties), moved.get(path), "{path}");
    }
    queries(&there);
    goes_on(&there, &tokens_before, "t");
}

#[test]
#[ignore = "long: for `make versions`"]
fn versions_3_6_to_3_12_and_back() {
    there_and_back("bw1", "sid", &[]);
}

#[test]
#[ignore = "long: for `make versions`"]
fn versions_3_12_to_3_6_and_back() {
    there_and_back("sid", "bw1", &[]);
}

#[test]
#[ignore = "long: for `make versions`"]
fn versions_3_10_to_3_12_and_back() {
    there_and_back("trix", "sid", &[]);
}
