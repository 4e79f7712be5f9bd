//! Whatever a host is, and whatever its twin.

use super::*;
use proptest::prelude::*;

/// Names as hosts have them, and as nobody should.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "c", "d", "nginx", "ssh"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["../x", "-rf", "$(id)", "a b;c", "{{ x }}", "a\"b", ""])
            .prop_map(str::to_owned),
    ]
}

fn content() -> impl Strategy<Value = Option<String>> {
    prop::option::weighted(0.8, (0u8..3).prop_map(|n| format!("{n:064x}")))
}

fn time() -> impl Strategy<Value = Option<Time>> {
    prop::option::of((0i64..5).prop_map(|n| Time(1_795_000_000_000_000 + n)))
}

fn path() -> impl Strategy<Value = String> {
    let place = prop::sample::select(vec![
        "/etc/systemd/system/",
        "/lib/systemd/system/",
        "/etc/nginx/",
        "/etc/a/",
        "/opt/",
        "/etc/systemd/system/a.service.d/",
    ]);
    (place, name()).prop_map(|(place, name)| {
        if place.contains("system/") {
            format!("{place}{name}.service")
        } else {
            format!("{place}{name}")
        }
    })
}

fn units() -> impl Strategy<Value = entity::Unit> {
    let state =
        prop::sample::select(vec!["active", "inactive", "failed", "activating", "reloading"]);
    let enablement =
        prop::sample::select(vec!["enabled", "disabled", "masked", "static", "enabled-runtime"]);
    let names = || prop::collection::vec(name().prop_map(|name| format!("{name}.service")), 0..3);
    let kind = prop::sample::select(vec!["service", "socket", "target", "slice"]);
    let times = (time(), time(), any::<bool>(), any::<bool>());
    (
        name(),
        kind,
        state,
        prop::option::of(enablement),
        prop::option::of(path()),
        names(),
        names(),
        times,
    )
        .prop_map(
            |(
                name,
                kind,
                state,
                enablement,
                fragment,
                requires,
                after,
                (since, changed_at, reload, needs_reload),
            )| entity::Unit {
                id: format!("{name}.{kind}"),
                active_state: state.to_owned(),
                load_state: "loaded".into(),
                enablement: enablement.map(str::to_owned),
                drop_ins: vec!["/etc/systemd/system/a.service.d/a.service".into()],
                exec_reload: if reload { vec![vec!["/bin/true".into()]] } else { Vec::new() },
                exec_start: vec![vec!["/opt/a".into()]],
                fragment_path: fragment,
                requires,
                after,
                since,
                changed_at,
                needs_reload,
                ..entity::Unit::default()
            },
        )
}

fn files() -> impl Strategy<Value = entity::File> {
    let role = prop::sample::select(vec!["unit", "dropin", "environment", "config", "program"]);
    let link = prop::option::weighted(0.2, prop::sample::select(vec!["/dev/null", "../x"]));
    (path(), content(), role, prop::option::of(name()), name(), link, any::<bool>(), time())
        .prop_map(|(path, content, role, package, owner, link, redacted, modified_at)| {
            entity::File {
                path,
                mode: Some("0644".into()),
                owner: Some(owner),
                group: Some("root".into()),
                fingerprint: Some("aa".into()),
                withheld: content.is_none().then(|| "private".to_owned()),
                redacted: redacted && content.is_some(),
                content,
                role: role.into(),
                package,
                link: link.map(str::to_owned),
                modified_at,
                ..entity::File::default()
            }
        })
}

fn accounts() -> impl Strategy<Value = (entity::User, entity::Group)> {
    let number = prop::sample::select(vec![0i64, 100, 999, 1000, 1001, -1]);
    (name(), number.clone(), number, prop::collection::vec(name(), 0..3)).prop_map(
        |(name, uid, gid, mut members)| {
            members.sort();
            members.dedup();
            let user = entity::User {
                name: name.clone(),
                uid: Some(uid),
                gid: Some(gid),
                ..entity::User::default()
            };
            (user, entity::Group { name, gid: Some(gid), members })
        },
    )
}

fn others() -> impl Strategy<Value = Facts> {
    let package = (name(), prop::sample::select(vec!["1", "2", "$(x)"]));
    let state = prop::sample::select(vec!["running", "exited", "paused", "restarting"]);
    let container = (name(), state, prop::sample::select(vec!["img:1", "img:2", "-x"]), content());
    let process =
        (name(), prop::collection::vec(".{0,5}", 0..3), prop::collection::vec(1i64..4, 0..2));
    (
        prop::collection::vec(package, 0..4),
        prop::collection::vec(container, 0..3),
        prop::collection::vec(process, 0..2),
    )
        .prop_map(|(packages, containers, processes)| {
            let mut facts = Facts::default();
            for (name, version) in packages {
                let (version, manager) = (version.to_owned(), "dpkg".to_owned());
                facts.put_entity(&entity::Package {
                    name,
                    version,
                    manager,
                    ..entity::Package::default()
                });
            }
            for (name, state, image, value) in containers {
                let environment = value.into_iter().map(|value| ("A".to_owned(), value)).collect();
                let (state, image) = (state.to_owned(), image.to_owned());
                facts.put_entity(&entity::Container {
                    name,
                    state,
                    image,
                    environment,
                    ..entity::Container::default()
                });
            }
            for (name, arguments, pids) in processes {
                let executable = Some(format!("/usr/bin/{name}"));
                facts.put_entity(&entity::Process {
                    id: format!("{name}#1"),
                    name,
                    executable,
                    arguments,
                    pids,
                    ..entity::Process::default()
                });
            }
            facts
        })
}

fn hosts() -> impl Strategy<Value = Facts> {
    let parts = (
        prop::collection::vec(units(), 0..6),
        prop::collection::vec(files(), 0..8),
        prop::collection::vec(accounts(), 0..4),
        others(),
    );
    parts.prop_map(|(units, files, accounts, mut facts)| {
        units.iter().for_each(|unit| drop(facts.put_entity(unit)));
        files.iter().for_each(|file| drop(facts.put_entity(file)));
        for (user, group) in accounts {
            facts.put_entity(&user);
            facts.put_entity(&group);
        }
        facts
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn equal_facts_need_nothing(host in hosts()) {
        let made = plan(&spec_of(&host), &host, &Own::default());
        // A process is not a unit yet: it becomes one in the twin.
        let others = made.steps().iter().filter(|step| !step.action.to_string().contains(PREFIX));
        let others = others.filter(|step| step.action != Action::ReloadManager);
        prop_assert_eq!(others.count(), 0, "{}", show(&made));
    }

    #[test]
    fn a_plan_carried_out_leaves_nothing(host in hosts(), twin in hosts()) {
        let spec = spec_of(&host);
        let made = plan(&spec, &twin, &Own::default());
        let json = serde_json::to_string(&made).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Plan>(&json).unwrap(), &made);
        let after = carry_out(&made, &host, &twin);
        let again = plan(&spec, &after, &Own::default());
        prop_assert!(again.is_empty(), "after\n{}there is still\n{}", show(&made), show(&again));
        prop_assert_eq!(plan(&spec, &twin, &Own::default()), made);
    }
}
