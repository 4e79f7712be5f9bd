//! The command line as a user meets it: help, mistakes, exit codes.

use expect_test::{Expect, expect};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

fn twin(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twin"))
        .args(arguments)
        .env_remove("SAFETYTWIN_SERVER")
        .env_remove("SAFETYTWIN_TOKEN")
        .env("COLUMNS", "100")
        .output()
        .expect("the program is built")
}

/// What a command says on standard error, and its exit code; nothing goes to standard output.
fn check(arguments: &[&str], expected: &Expect) {
    let output = twin(arguments);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "standard output is data");
    let said = String::from_utf8(output.stderr).expect("text");
    expected
        .assert_eq(&format!("{said}exit {}\n", output.status.code().expect("it ends by itself")));
}

const NOWHERE: &str = "--server=http://127.0.0.1:1";

#[test]
fn mistakes() {
    check(
        &["lst"],
        &expect![[r#"
            error: unrecognized subcommand 'lst'

              tip: some similar subcommands exist: 'stop', 'list'

            Usage: twin [OPTIONS] <COMMAND>

            For more information, try '--help'.
            exit 2
        "#]],
    );
    check(
        &["log", "--limit", "0"],
        &expect![[r#"
        error: invalid value '0' for '--limit <LIMIT>': 0 is not in 1..=1000000

        For more information, try '--help'.
        exit 2
    "#]],
    );
    check(
        &["log", "--since", "yesterday"],
        &expect![[r#"
        error: invalid value 'yesterday' for '--since <MOMENT>': "yesterday" is not a moment: write a time (2026-11-20T09:00Z), an age (-10m, -2h30m, -1d), a version (@412) or now

        For more information, try '--help'.
        exit 2
    "#]],
    );
    check(
        &["state", "--kind", "Unit"],
        &expect![[r#"
        error: invalid value 'Unit' for '--kind <KIND>': a kind is one of unit, container, process, package, file, socket, dependency, workload, user, group, platform, cpu, memory, disk, filesystem, interface, route, gpu, collector

        For more information, try '--help'.
        exit 2
    "#]],
    );
}

#[test]
fn a_qemu_that_is_too_old_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("qemu-system-x86_64");
    std::fs::write(&program, "#!/bin/sh\necho QEMU emulator version 8.2.1\n").expect("a file");
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("its mode");
    let output = Command::new(env!("CARGO_BIN_EXE_twin"))
        .args(["doctor", NOWHERE, "--data-dir"])
        .arg(dir.path())
        .env("PATH", dir.path())
        .output()
        .expect("the program is built");
    let said = String::from_utf8_lossy(&output.stdout);
    let told = "twins: none can run here: qemu-system-x86_64 is 8.2.1; 9.0 or newer is needed";
    assert!(said.contains(told) && said.contains("bookworm-backports"), "{said}");
}

#[test]
fn what_is_missing() {
    check(
        &["diff"],
        &expect![[r#"
        error: the following required arguments were not provided:
          <HOST[@MOMENT]>...

        Usage: twin diff <HOST[@MOMENT]>...

        For more information, try '--help'.
        exit 2
    "#]],
    );
    check(
        &["watch", "--for", "10"],
        &expect![[r#"
        error: invalid value '10' for '--for <TIME>': write a time as 10s, 5m or 1h30m

        For more information, try '--help'.
        exit 2
    "#]],
    );
    check(
        &["token", "create"],
        &expect![[r#"
        error: the following required arguments were not provided:
          --role <ROLE>

        Usage: twin token create --role <ROLE>

        For more information, try '--help'.
        exit 2
    "#]],
    );
    check(
        &["list", "--token", "twt_x"],
        &expect![[r#"
        error: unexpected argument '--token' found

          tip: a similar argument exists: '--token-file'

        Usage: twin list --token-file <FILE>

        For more information, try '--help'.
        exit 2
    "#]],
    );
}

#[test]
fn no_server() {
    let told = expect![[r#"
        twin: no server at http://127.0.0.1:1 (connection refused); start one with: twin up
        exit 3
    "#]];
    for command in [&["list"][..], &["show", "web01"], &["log", "nginx"], &["watch"], &["load"]] {
        check(&[&[NOWHERE], command].concat(), &told);
    }
}

#[test]
fn bad_configuration() {
    check(
        &["--server", "127.0.0.1:8470", "list"],
        &expect![[r#"
        twin: "127.0.0.1:8470" is not a server's address; write http://HOST:PORT
        exit 64
    "#]],
    );
    check(
        &["--server", "https://x", "list"],
        &expect![[r#"
        twin: "https://x" asks for TLS, which this client does not speak; use http:// through a tunnel or proxy that does
        exit 64
    "#]],
    );
    check(
        &[NOWHERE, "--token-file", "/nowhere", "list"],
        &expect![[r#"
        twin: could not read /nowhere: No such file or directory (os error 2)
        exit 64
    "#]],
    );
    check(
        &[NOWHERE, "--token-file", "/dev/null", "list"],
        &expect![[r#"
        twin: /dev/null does not hold a token
        exit 64
    "#]],
    );
}

/// The help, without the spaces that lines end in, in two parts: the commands, and the rest.
fn whole_help() -> (String, String) {
    let output = twin(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let text = lines.join("\n") + "\n";
    let (commands, rest) = text.split_once("\nOptions:\n").expect("help has options");
    (commands.to_owned(), rest.to_owned())
}

#[test]
fn help_names_the_commands() {
    expect![[r#"
        A live, rewindable twin of every Linux host you run

        Usage: twin [OPTIONS] <COMMAND>

        Commands:
          up           Watch this machine: server and agent together, in the foreground
          server       Run the server
          agent        Run the agent
          list         List the hosts and their twins: version, last change, faults, state, lag, fidelity
          show         Show one host at a glance, and its twin
          state        Show the facts of a host, now or at any moment
          log          Show what happened to a unit, container, package, file, or to the whole host
          diff         Show what differs between two moments, or two hosts
          watch        Follow changes as they happen
          load         Show the load of a host, its units and processes
          start        Start the twin of a host: make it if need be, boot it, wait until it answers
          stop         Stop a twin
          restart      Stop a twin and start it
          ssh          Open a shell in a twin, or run a command there
          console      Open the serial console of a twin
          clone        Make machines that begin in a moment of a twin, each with an identity of its own
          revert       Put a twin back to a snapshot or a moment; what was not saved is lost
          plan         Show what would be done in a twin to bring it to its host
          verify       Look at a twin, and say whether it is as its host
          fidelity     Show what of a host its twin has; what it has not, why, and what to do
          apply        Bring a twin to the newest version of its host, once; also one that is held
          hold         Leave a twin as it is, whatever its host does
          follow       Let a twin follow its host
          delete       Remove a twin with its disk and all its snapshots. The host's history stays
          snapshot     Save a twin, go back to what was saved, list and delete that
          extras       Declare services, processes, containers and dependencies of a twin, on top of its
                       host's
          run          See what takes long: its state, its log, and end it
          image        Build, list and delete the base images that machines start from
          inventory    See the VMs of all nodes: their state, their use, how well they do
          sync         Keep VMs in step with ESXi hosts and vCenters, and see how it stands
          token        Create, list and revoke tokens of the server on this machine
          doctor       Find what is missing or misconfigured, and how to mend it
          completions  Print a completion script for a shell
          man          Print the manual page, or write those of all commands to a directory
          help         Print this message or the help of the given subcommand(s)
    "#]]
    .assert_eq(&whole_help().0);
}

#[test]
fn help() {
    expect![[r#"
          -h, --help
                  Print help (see a summary with '-h')

          -V, --version
                  Print version

        Global options:
              --server <URL>
                  Address of the server

                  [env: SAFETYTWIN_SERVER=]
                  [default: http://127.0.0.1:8470]

              --token-file <FILE>
                  File that holds a token; SAFETYTWIN_TOKEN may hold the token itself

              --json
                  Print JSON, exact and complete

              --color <WHEN>
                  When to colour; NO_COLOR is honoured

                  Possible values:
                  - auto:   On a terminal, unless NO_COLOR is set
                  - always
                  - never

                  [default: auto]

              --utc
                  Show times in UTC instead of the local time zone

        HOST may carry a moment: web01@-5m, web01@2026-11-20T09:00Z, web01@412 (a version).
        On a server with one host the name may be left out: twin show, twin state @-5m.
        A subject is a unit, container, package, file or process: nginx, nginx.service,
        /etc/hosts, or with its kind, unit:nginx.service.

        Exit codes:
          0    done
          1    failed, `twin doctor` found an error, or `twin verify` a difference
          2    the command line is wrong
          3    the server can't be reached
          4    there is no such host, subject, moment, token, run, image, twin or snapshot
          5    not allowed: a token is missing, wrong, or of too small a role
          6    the run that was followed was cancelled
          7    the run that was followed was interrupted: the server ended first
          64   bad configuration: a token file, an address, a configuration file
          130  interrupted
    "#]]
    .assert_eq(&whole_help().1);
}

#[test]
fn tokens() {
    let dir = tempfile::tempdir().unwrap();
    let token = |arguments: &[&str]| {
        twin(&[&["token"], arguments, &["--data-dir", dir.path().to_str().unwrap()]].concat())
    };
    let text = |output: Output| String::from_utf8(output.stdout).unwrap();
    let made = text(token(&["create", "--role", "viewer", "--name", "laptop"]));
    assert!(made.starts_with("twt_") && made.len() == 48, "only the token: {made}");
    let listed = text(token(&["list"]));
    assert!(listed.contains("laptop") && !listed.contains(made.trim()), "{listed}");
    let id = listed.lines().nth(1).unwrap().split(' ').next().unwrap().to_owned();
    assert_eq!(token(&["revoke", &id]).status.code(), Some(0));
    assert_eq!(token(&["revoke", &id]).status.code(), Some(4));
    assert_eq!(text(token(&["list", "--json"])), "[]\n");
    assert_eq!(token(&["create", "--role", "viewer", "--host", "a"]).status.code(), Some(2));
}

#[test]
fn doctor_finds_the_server_missing() {
    let output = twin(&[NOWHERE, "doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with(
            "[ERROR]   server: none at http://127.0.0.1:1 (connection refused)\n          twin up\n"
        ),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = twin(&["completions", shell]).stdout;
        assert!(String::from_utf8(script).unwrap().contains("token-file"), "{shell}");
    }
}
