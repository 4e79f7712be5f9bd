use super::*;
use proptest::prelude::*;

fn document() -> VmDocument {
    VmDocument {
        uuid: "4210-1".to_owned(),
        esxi_host_addr: Some("192.0.2.17".to_owned()),
        name: "vm-01".to_owned(),
        hostname: Some("vm-01.example".to_owned()),
        addr: None,
        power_state: "on".to_owned(),
        vmware_tools: "guestToolsRunning".to_owned(),
        orphan_since: None,
        last_sync_time: stamp::read("01-07-2024: 12:34:00").unwrap(),
    }
}

fn text(text: &str) -> Field {
    Field::Text(text.to_owned())
}

/// What is stored after a change was carried out.
fn after(mut stored: Fields, change: Change) -> Fields {
    stored.extend(change.set);
    stored
}

#[test]
fn a_new_one_has_all_fields() {
    let fields = created(&document());
    assert!(fields.keys().copied().eq({
        let mut names = FIELDS;
        names.sort_unstable();
        names
    }));
    assert_eq!(fields["addr"], Field::Null);
    assert_eq!(fields["orphan"], Field::Flag(false));
    assert_eq!(fields["orphan_since"], Field::Null);
    assert_eq!(fields["last_sync_time"], text("01-07-2024: 12:34:00"));
}

#[test]
fn only_what_differs_is_set() {
    let stored = created(&document());
    let later = document().last_sync_time.plus(std::time::Duration::from_secs(120));
    let same = VmDocument { last_sync_time: later, ..document() };
    let change_of_time = change(&stored, &same);
    assert_eq!(
        change_of_time.set,
        Fields::from([("last_sync_time", text("01-07-2024: 12:36:00"))])
    );
    assert!(!change_of_time.differs);

    let renamed = VmDocument { name: "vm-02".to_owned(), ..document() };
    let change_of_name = change(&stored, &renamed);
    assert!(change_of_name.differs);
    assert_eq!(change_of_name.set.keys().copied().collect::<Vec<_>>(), ["last_sync_time", "name"]);
}

#[test]
fn what_is_unknown_stays_as_it_was() {
    let mut stored = created(&document());
    stored.insert("addr", text("192.0.2.200"));
    let unknown = VmDocument { hostname: None, addr: None, ..document() };
    let change = change(&stored, &unknown);
    assert!(!change.differs);
    assert_eq!(after(stored.clone(), change), stored);
}

#[test]
fn an_orphan_stays_one_since_it_is_one() {
    let first = stamp::read("02-07-2024: 08:00:00").unwrap();
    let second = stamp::read("03-07-2024: 08:00:00").unwrap();
    let orphan = |since| VmDocument { orphan_since: Some(since), ..document() };
    let stored = after(created(&document()), change(&created(&document()), &orphan(first)));
    assert_eq!(stored["orphan"], Field::Flag(true));
    assert_eq!(stored["orphan_since"], text("02-07-2024: 08:00:00"));
    // Said anew, later.
    assert!(!change(&stored, &orphan(second)).differs);
    // Back, and gone again.
    let back = after(stored.clone(), change(&stored, &document()));
    assert_eq!((&back["orphan"], &back["orphan_since"]), (&Field::Flag(false), &Field::Null));
    let again = after(back.clone(), change(&back, &orphan(second)));
    assert_eq!(again["orphan_since"], text("03-07-2024: 08:00:00"));
    // One of which nobody can read since when.
    for broken in [Field::Null, Field::Other, text("long ago")] {
        let mut stored = stored.clone();
        stored.insert("orphan_since", broken);
        assert_eq!(change(&stored, &orphan(second)).set["orphan_since"], again["orphan_since"]);
    }
}

#[test]
fn a_field_of_another_type_is_made_right() {
    let mut stored = created(&document());
    stored.insert("orphan", text("false"));
    stored.insert("name", Field::Other);
    stored.remove("power_state");
    let change = change(&stored, &document());
    assert_eq!(
        change.set.keys().copied().collect::<Vec<_>>(),
        ["last_sync_time", "name", "orphan", "power_state"]
    );
    assert_eq!(after(stored, change), created(&document()));
}

#[test]
fn one_without_an_identity_is_not_read() {
    for name in ["uuid", "esxi_host_addr", "name"] {
        let mut fields = created(&document());
        fields.insert(name, Field::Null);
        assert_eq!(read(&fields), Err(name));
        fields.remove(name);
        assert_eq!(read(&fields), Err(name));
    }
    // What the service before left out, or wrote by another clock's form.
    let mut fields = created(&document());
    fields.insert("orphan", Field::Flag(true));
    fields.insert("orphan_since", text("yesterday"));
    assert_eq!(read(&fields).unwrap().orphan_since, Some(document().last_sync_time));
}

fn documents() -> impl Strategy<Value = VmDocument> {
    let since = proptest::option::of(0i64..2_000_000_000);
    let known = (proptest::option::of("[a-z]{1,3}"), proptest::option::of("[0-9.]{1,3}"));
    ("[a-c]{1,2}", known, "on|off|suspended", since, 0i64..2_000_000_000).prop_map(
        |(name, (hostname, addr), power_state, since, at)| VmDocument {
            name,
            hostname,
            addr,
            power_state,
            orphan_since: since.map(Time::from_seconds),
            last_sync_time: Time::from_seconds(at),
            ..document()
        },
    )
}

proptest! {
    #[test]
    fn what_was_set_is_not_set_again(before in documents(), said in documents()) {
        let stored = after(created(&before), change(&created(&before), &said));
        let again = change(&stored, &said);
        prop_assert!(!again.differs);
        prop_assert_eq!(after(stored.clone(), again), stored.clone());
        // And it says what it was to say.
        let read = read(&stored).unwrap();
        prop_assert_eq!(&read.name, &said.name);
        prop_assert_eq!(&read.power_state, &said.power_state);
        prop_assert_eq!(read.hostname, said.hostname.clone().or(before.hostname.clone()));
        prop_assert_eq!(read.addr, said.addr.clone().or(before.addr.clone()));
        prop_assert_eq!(read.last_sync_time, said.last_sync_time);
        let since = said.orphan_since.map(|since| before.orphan_since.unwrap_or(since));
        prop_assert_eq!(read.orphan_since, since);
    }

    #[test]
    fn a_new_one_is_read_as_it_was(document in documents()) {
        prop_assert_eq!(read(&created(&document)), Ok(document));
    }
}
