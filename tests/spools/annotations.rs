//! Annotations of mailboxes and messages.

use std::collections::BTreeSet;

use mbcopy::cyrus::annotation::{AnnotationKey, AnnotationValue, Scope};
use mbcopy::cyrus::db::{Database, Engine};
use serde_json::Value;

use crate::folders::messages;
use crate::server::{Server, bytes, internal};

/// Mailbox, name with `/shared` or `/private`, user, value.
pub type Annotation = (String, String, String, String);

/// What annotations.db has of mailboxes.
pub fn stored_annotations(server: &Server) -> BTreeSet<Annotation> {
    let mut files = server.files.iter().filter(|(path, _)| path.ends_with("/annotations.db"));
    let (_, file) = files.find(|(path, _)| !path.contains("backup")).unwrap();
    let entries = Database::open(file.clone(), &Engine::Flat).unwrap().entries().unwrap();
    let mut found = BTreeSet::new();
    for (raw_key, raw) in entries {
        let key = AnnotationKey::parse(&raw_key).unwrap();
        assert_eq!(key.to_bytes(), raw_key);
        let value = AnnotationValue::parse(&raw).unwrap();
        assert_eq!(value.to_bytes().unwrap(), raw);
        if let (Scope::Mailbox(name), false) = (key.scope, value.is_deleted()) {
            if name.starts_with(b"DELETED.") {
                continue;
            }
            let user = bytes(Some(&key.userid));
            let kind = if user.is_empty() { "/shared" } else { "/private" };
            let entry = format!("{kind}{}", bytes(Some(&key.entry)));
            found.insert((bytes(Some(&name)), entry, user, bytes(Some(&value.value))));
        }
    }
    found
}

/// What clients saw, without what the server computes, by ANNOTATEMORE or METADATA.
pub fn shown_annotations(server: &Server) -> BTreeSet<Annotation> {
    let mut shown = BTreeSet::new();
    for (user, seen_by) in &server.users {
        for (name, folder) in seen_by["mailboxes"].as_object().unwrap() {
            let mailbox = internal(user, name, &seen_by["namespace"]);
            let mut add = |entry: String, value: &Value| {
                let computed = entry.contains("/vendor/") && !entry.ends_with("/expire");
                if !computed {
                    let private = entry.starts_with("/private");
                    let user = if private { user.clone() } else { String::new() };
                    let value = value.as_str().unwrap().to_owned();
                    shown.insert((mailbox.clone(), entry, user, value));
                }
            };
            for (entry, values) in
                folder.get("annotations").and_then(Value::as_object).into_iter().flatten()
            {
                for (kind, value) in values.as_object().unwrap() {
                    let kind = if kind == "value.priv" { "/private" } else { "/shared" };
                    add(format!("{kind}{entry}"), value);
                }
            }
            for (entry, value) in
                folder.get("metadata").and_then(Value::as_object).into_iter().flatten()
            {
                add(entry.clone(), value);
            }
        }
    }
    shown
}

/// Mailbox, UID, entry, user, value.
pub type MessageAnnotation = (String, u32, String, String, String);

/// All annotations of messages that there are.
pub fn message_annotations(server: &Server) -> BTreeSet<MessageAnnotation> {
    let mut found = BTreeSet::new();
    for (name, directory) in server.directories() {
        let Some(file) = server.file(directory, "cyrus.annotations") else {
            continue;
        };
        for (raw_key, raw) in
            Database::open(file.clone(), &Engine::Twoskip).unwrap().entries().unwrap()
        {
            let key = AnnotationKey::parse_message(&raw_key).unwrap();
            assert_eq!(key.to_bytes(), raw_key);
            let value = AnnotationValue::parse(&raw).unwrap();
            assert_eq!(value.to_bytes().unwrap(), raw);
            let Scope::Message(uid) = key.scope else {
                panic!("no UID");
            };
            let (entry, user) = (bytes(Some(&key.entry)), bytes(Some(&key.userid)));
            found.insert((name.clone(), uid, entry, user, bytes(Some(&value.value))));
        }
    }
    found
}

pub fn shown_message_annotations(server: &Server) -> BTreeSet<MessageAnnotation> {
    let mut shown = BTreeSet::new();
    for (user, seen_by) in &server.users {
        for (name, folder) in seen_by["mailboxes"].as_object().unwrap() {
            let name = internal(user, name, &seen_by["namespace"]);
            let list = folder.get("messages").map(messages).unwrap_or_default();
            for (uid, message) in list {
                // entry (kind value kind value) entry (...)
                let annotations = message.get("annotations").and_then(Value::as_array);
                for pair in annotations.into_iter().flat_map(|list| list.chunks(2)) {
                    let entry = pair[0].as_str().unwrap().to_owned();
                    for value in pair[1].as_array().unwrap().chunks(2) {
                        let (kind, value) =
                            (value[0].as_str().unwrap(), value[1].as_str().unwrap());
                        let user = if kind == "value.priv" { user.clone() } else { String::new() };
                        if value != "NIL" {
                            shown.insert((
                                name.clone(),
                                uid,
                                entry.clone(),
                                user,
                                value.to_owned(),
                            ));
                        }
                    }
                }
            }
        }
    }
    shown
}
