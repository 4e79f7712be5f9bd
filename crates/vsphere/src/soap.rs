//! Envelopes out, and what comes in them back. Pure.

use crate::objects::{Change, Thing};
use crate::xml::{self, Element};

/// What a call was answered.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The element `…Response`.
    Answer(Element),
    /// The kind is vSphere's name of the fault, as `NotAuthenticated`.
    Fault { kind: String, message: String },
}

pub(crate) fn envelope(body: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?><e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema"><e:Body>{body}</e:Body></e:Envelope>"#
    )
}

/// A call of a method of an object, with its arguments as XML.
pub(crate) fn call(method: &str, this: (&str, &str), arguments: &str) -> String {
    let (kind, id) = this;
    let id = xml::escaped(id);
    format!(
        r#"<{method} xmlns="urn:vim25"><_this type="{kind}">{id}</_this>{arguments}</{method}>"#
    )
}

/// What is in an envelope; nothing where it is none.
pub(crate) fn reply(mut envelope: Element) -> Option<Reply> {
    let body = envelope.children.iter_mut().find(|child| child.name == "Body")?;
    let content = body.children.pop()?;
    if content.name != "Fault" {
        return Some(Reply::Answer(content));
    }
    let detail = content.child("detail").and_then(|detail| detail.children.first());
    let kind = detail.map(|detail| {
        let name = detail.name.strip_suffix("Fault").unwrap_or(&detail.name);
        detail.form.as_deref().unwrap_or(name)
    });
    let code = content.text_of("faultcode").unwrap_or_default();
    Some(Reply::Fault {
        kind: shown(kind.unwrap_or(code)),
        message: shown(content.text_of("faultstring").unwrap_or("no reason was given")),
    })
}

/// The answer in an envelope, as it comes over the wire.
///
/// # Errors
/// When it is not well formed, or exceeds a limit.
pub fn answer(bytes: &[u8]) -> Result<Option<Element>, xml::Error> {
    Ok(match reply(xml::parse(bytes)?) {
        Some(Reply::Answer(answer)) => Some(answer),
        Some(Reply::Fault { .. }) | None => None,
    })
}

/// The changes in an answer about updates, or a page of objects.
#[must_use]
pub fn updates(answer: &Element) -> Vec<Change> {
    let Some(value) = answer.child("returnval") else { return Vec::new() };
    let of_filters = value.all("filterSet").flat_map(|set| set.all("objectSet"));
    of_filters.chain(value.all("objects")).filter_map(change).collect()
}

/// `objectSet` of an update, or `objects` of a page: in the latter everything is set.
fn change(element: &Element) -> Option<Change> {
    let reference = element.child("obj")?;
    let thing = Thing::of(reference.refers_to.as_deref()?)?;
    let mut change = Change {
        id: reference.text.clone(),
        thing,
        leaves: element.text_of("kind") == Some("leave"),
        modifies: element.text_of("kind") == Some("modify"),
        ..Change::default()
    };
    for set in element.all("changeSet").chain(element.all("propSet")) {
        let Some(name) = set.text_of("name") else { continue };
        let assigns = !set.text_of("op").is_some_and(|op| op != "assign" && op != "add");
        let value = set.child("val").filter(|_| assigns);
        change.properties.push((name.to_owned(), value.cloned()));
    }
    for missing in element.all("missingSet") {
        let fault = missing.child("fault").and_then(|fault| fault.child("fault"));
        let is_denied = fault.is_some_and(|fault| fault.form.as_deref() == Some("NoPermission"));
        if is_denied && let Some(path) = missing.text_of("path") {
            change.denied.push(shown(path));
        }
    }
    Some(change)
}

/// A server's text, for a message.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Option<Reply> {
        reply(xml::parse(envelope(body).as_bytes()).unwrap())
    }

    #[test]
    fn answers_and_faults() {
        assert!(
            matches!(read("<AResponse/>"), Some(Reply::Answer(answer)) if answer.name == "AResponse")
        );
        let fault = r#"<e:Fault><faultcode>ServerFaultCode</faultcode><faultstring>The session is not authenticated.</faultstring><detail><NotAuthenticatedFault xsi:type="NotAuthenticated"/></detail></e:Fault>"#;
        let Some(Reply::Fault { kind, message }) = read(fault) else { panic!("no fault") };
        assert_eq!(
            (kind.as_str(), message.as_str()),
            ("NotAuthenticated", "The session is not authenticated.")
        );
        let bare = read("<e:Fault><faultcode>x</faultcode></e:Fault>");
        assert!(matches!(bare, Some(Reply::Fault { kind, .. }) if kind == "x"));
        assert!(reply(Element::default()).is_none());
        assert!(read("").is_none());
    }

    #[test]
    fn arguments_can_not_leave_their_place() {
        let text = call("Login", ("SessionManager", "a\"><b>"), "");
        assert!(text.contains("a&quot;&gt;&lt;b&gt;"), "{text}");
    }

    #[test]
    fn changes() {
        let body = r#"<WaitForUpdatesExResponse xmlns="urn:vim25"><returnval><version>2</version><filterSet><objectSet><kind>modify</kind><obj type="VirtualMachine">vm-1</obj><changeSet><name>name</name><op>assign</op><val xsi:type="xsd:string">web</val></changeSet><changeSet><name>guest.hostName</name><op>indirectRemove</op></changeSet><missingSet><path>config.uuid</path><fault><fault xsi:type="NoPermission"/></fault></missingSet></objectSet><objectSet><kind>leave</kind><obj type="VirtualMachine">vm-2</obj></objectSet><objectSet><kind>enter</kind><obj type="Datastore">ds-1</obj></objectSet></filterSet></returnval></WaitForUpdatesExResponse>"#;
        let Some(Reply::Answer(answer)) = read(body) else { panic!("no answer") };
        let changes = updates(&answer);
        assert_eq!(changes.len(), 2);
        assert_eq!(changes[0].properties[0].1.as_ref().unwrap().text, "web");
        assert_eq!(changes[0].properties[1], ("guest.hostName".to_owned(), None));
        assert_eq!(changes[0].denied, ["config.uuid"]);
        assert!(changes[0].modifies && !changes[1].modifies && changes[1].leaves);
    }
}
