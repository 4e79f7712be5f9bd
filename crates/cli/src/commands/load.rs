//! `twin load`: how busy a host is, and with what; or the course of it over time.

use crate::arguments::{LoadArguments, Sort};
use crate::failure::Failure;
use crate::session::{Session, note};
use crate::table::{Cell, Table};
use crate::target::single;
use crate::view::{Paint, View, bytes, duration};
use model::load::{HostLoad, Load};
use std::cmp::Ordering;
use std::time::Duration;

/// How old a sample may be and still be called the current one.
const CURRENT: &str = "-2m";

pub(crate) async fn run(arguments: &LoadArguments, session: &mut Session) -> Result<(), Failure> {
    let target = single(&mut session.remote, "twin load", arguments.target.as_ref()).await?;
    let mut from = arguments.from.as_ref().map(|moment| moment.0.clone());
    let to = arguments.to.as_ref().map(|moment| moment.0.clone());
    if target.moment.is_some() {
        let host = &target.host;
        let advice = format!("load is a course, not a state; write: twin load {host} --from -10m");
        return Err(Failure::Usage(advice));
    }
    let course = from.is_some() || to.is_some();
    let points = course.then_some(usize::from(arguments.points));
    if !course {
        from = Some(CURRENT.to_owned());
    }
    let (from, to) = (from.as_deref(), to.as_deref());
    let mut loads = session.remote.load(&target.host, from, to, points).await?;
    if loads.samples.is_empty() {
        note("no load was measured in that time");
    }
    if !course {
        // The newest is the current one.
        loads.samples.drain(..loads.samples.len().saturating_sub(1));
    }
    session.answer(&loads, |loads, view| match loads.samples.as_slice() {
        [] => String::new(),
        [current] if !course => render_current(current, arguments, view),
        samples => render_course(samples, view),
    })
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} %"))
}

fn size(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), bytes)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the saturating cast is what is wanted of a measurement"
)]
fn rate(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{}/s", bytes(value.max(0.0) as u64)))
}

fn used(total: Option<u64>, available: Option<u64>) -> Option<u64> {
    Some(total?.saturating_sub(available?))
}

/// Ten-second pressure, the plainest sign of a machine that can't keep up.
fn pressure(host: &HostLoad) -> String {
    let parts: Vec<String> = ["cpu", "memory", "io"]
        .iter()
        .filter_map(|&name| {
            let [ten, ..] = host.pressure.get(name)?.some?;
            Some(format!("{name} {ten:.0} %"))
        })
        .collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

fn averages(host: &HostLoad) -> String {
    let Some([one, five, fifteen]) = host.load_average else { return "-".to_owned() };
    format!("{one:.2} {five:.2} {fifteen:.2}")
}

fn render_current(load: &Load, arguments: &LoadArguments, view: &View) -> String {
    let limit = arguments.limit;
    let blocks = [
        overview(load, view),
        units(load, arguments.sort, limit, view),
        processes(load, arguments.sort, limit, view),
        filesystems(load, limit, view),
        traffic(load, limit, view),
    ];
    let blocks: Vec<String> = blocks.into_iter().filter(|block| !block.is_empty()).collect();
    blocks.join("\n")
}

fn overview(load: &Load, view: &View) -> String {
    let host = &load.host;
    let memory = used(host.memory_total_bytes, host.memory_available_bytes);
    let swap = used(host.swap_total_bytes, host.swap_free_bytes);
    let of = |used: Option<u64>, total: Option<u64>| format!("{} of {}", size(used), size(total));
    let up = host.uptime_seconds.and_then(|up| Duration::try_from_secs_f64(up).ok());
    let rows = [
        ("at", format!("{} ({})", view.time(load.at), view.age(load.at))),
        (
            "cpu",
            format!("{}, iowait {}", percent(host.cpu_percent), percent(host.cpu_iowait_percent)),
        ),
        ("memory", of(memory, host.memory_total_bytes)),
        ("swap", of(swap, host.swap_total_bytes)),
        ("load", averages(host)),
        ("pressure", pressure(host)),
        ("up", up.map_or_else(|| "-".to_owned(), duration)),
    ];
    let rows = rows
        .into_iter()
        .filter(|(_, text)| !["-", "- of -", "0 B of 0 B"].contains(&text.as_str()));
    let lines = crate::entry::aligned(rows.collect(), view);
    lines.into_iter().map(|line| line + "\n").collect()
}

/// The busiest first; what was not measured last.
fn busiest(
    sort: Sort,
    one: (Option<f64>, Option<u64>),
    other: (Option<f64>, Option<u64>),
) -> Ordering {
    let cpu = || other.0.unwrap_or(-1.0).total_cmp(&one.0.unwrap_or(-1.0));
    let memory = || other.1.cmp(&one.1);
    match sort {
        Sort::Cpu => cpu().then_with(memory),
        Sort::Memory => memory().then_with(cpu),
    }
}

fn units(load: &Load, sort: Sort, limit: usize, view: &View) -> String {
    let mut units: Vec<_> = load.units.iter().collect();
    units.sort_by(|(_, one), (_, other)| {
        busiest(sort, (one.cpu_percent, one.memory_bytes), (other.cpu_percent, other.memory_bytes))
    });
    let mut table = Table::new(view, &["UNIT", "CPU", "MEMORY", "TASKS", "READ", "WRITTEN"]);
    for (name, unit) in units.iter().take(limit) {
        table.row([
            Cell::from(name.as_str()),
            Cell::number(percent(unit.cpu_percent)),
            Cell::number(size(unit.memory_bytes)),
            Cell::number(unit.tasks.map_or_else(|| "-".to_owned(), |tasks| tasks.to_string())),
            Cell::number(rate(unit.read_bytes_per_second)),
            Cell::number(rate(unit.written_bytes_per_second)),
        ]);
    }
    if units.is_empty() { String::new() } else { table.render("") }
}

fn processes(load: &Load, sort: Sort, limit: usize, view: &View) -> String {
    let mut processes: Vec<_> = load.processes.iter().collect();
    processes.sort_by(|one, other| {
        busiest(sort, (one.cpu_percent, one.memory_bytes), (other.cpu_percent, other.memory_bytes))
    });
    let mut table = Table::new(view, &["PID", "PROCESS", "CPU", "MEMORY", "UNIT"]);
    for process in processes.iter().take(limit) {
        table.row([
            Cell::number(process.pid.to_string()),
            Cell::from(process.name.as_str()),
            Cell::number(percent(process.cpu_percent)),
            Cell::number(size(process.memory_bytes)),
            Cell::from(process.unit.as_deref().unwrap_or("-")),
        ]);
    }
    if processes.is_empty() { String::new() } else { table.render("") }
}

fn filesystems(load: &Load, limit: usize, view: &View) -> String {
    if load.filesystems.is_empty() {
        return String::new();
    }
    let mut table = Table::new(view, &["MOUNT", "SIZE", "AVAILABLE", "USED"]);
    for (name, one) in load.filesystems.iter().take(limit) {
        let taken = used(one.size_bytes, one.available_bytes);
        let share = match (taken, one.size_bytes) {
            (Some(taken), Some(total)) if total > 0 => {
                Some(u128::from(taken) * 100 / u128::from(total))
            }
            _ => None,
        };
        let text = share.map_or_else(|| "-".to_owned(), |share| format!("{share} %"));
        let full = share.is_some_and(|share| share >= 90);
        table.row([
            Cell::from(name.as_str()),
            Cell::number(size(one.size_bytes)),
            Cell::number(size(one.available_bytes)),
            if full { Cell::painted(text, Paint::Red) } else { Cell::from(text) },
        ]);
    }
    table.render("")
}

fn traffic(load: &Load, limit: usize, view: &View) -> String {
    let moves = |one: Option<f64>, other: Option<f64>| one.or(other).is_some();
    let disks = load.disks.iter().map(|(name, one)| {
        let busy = one.busy_percent.map(|busy| format!("{busy:.0} % busy"));
        (name, one.read_bytes_per_second, one.written_bytes_per_second, busy)
    });
    let interfaces = load.interfaces.iter().map(|(name, one)| {
        let bad = one.errors_per_second.unwrap_or(0.0) + one.drops_per_second.unwrap_or(0.0);
        let bad = (bad > 0.0).then(|| format!("{bad:.1} errors/s"));
        (name, one.received_bytes_per_second, one.sent_bytes_per_second, bad)
    });
    let gpus = load.gpus.iter().map(|(name, one)| {
        let busy = format!("{} busy, {}", percent(one.busy_percent), size(one.memory_used_bytes));
        (name, Some(0.0), None, Some(busy))
    });
    let rows: Vec<_> =
        disks.chain(interfaces).chain(gpus).filter(|row| moves(row.1, row.2)).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new(view, &["DEVICE", "IN", "OUT", ""]);
    for (name, inward, outward, remark) in rows.into_iter().take(2 * limit) {
        let remark = remark.unwrap_or_default();
        table.row([
            Cell::from(name.as_str()),
            Cell::number(rate(inward)),
            Cell::number(rate(outward)),
            Cell::from(remark),
        ]);
    }
    table.render("")
}

fn render_course(samples: &[Load], view: &View) -> String {
    let mut table =
        Table::new(view, &["TIME", "CPU", "IOWAIT", "MEMORY", "SWAP", "LOAD", "PRESSURE"]);
    for sample in samples {
        let host = &sample.host;
        table.row([
            Cell::from(view.time(sample.at)),
            Cell::number(percent(host.cpu_percent)),
            Cell::number(percent(host.cpu_iowait_percent)),
            Cell::number(size(used(host.memory_total_bytes, host.memory_available_bytes))),
            Cell::number(size(used(host.swap_total_bytes, host.swap_free_bytes))),
            Cell::from(averages(host)),
            Cell::from(pressure(host)),
        ]);
    }
    table.render("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::tests::at;
    use expect_test::expect;

    fn load() -> Load {
        let json = r#"{
            "host": {"uptime_seconds": 98765.4, "cpu_percent": 37.25, "cpu_iowait_percent": 1.5,
                "load_average": [1.5, 0.75, 0.25], "memory_total_bytes": 8370000000,
                "memory_available_bytes": 4185000000, "swap_total_bytes": 0, "swap_free_bytes": 0,
                "pressure": {"cpu": {"some": [12.0, 5.0, 1.0], "full": null}}},
            "units": {"nginx.service": {"cpu_percent": 12.5, "memory_bytes": 52428800, "tasks": 5},
                "db.service": {"cpu_percent": 3.0, "memory_bytes": 1073741824, "read_bytes_per_second": 1048576.0},
                "x\u001b[2J.service": {}},
            "processes": [{"pid": 812, "name": "ng\nx", "cpu_percent": 12.5, "memory_bytes": 1000000, "unit": "nginx.service"}],
            "filesystems": {"/": {"size_bytes": 40000000000, "available_bytes": 1000000000}},
            "disks": {"vda": {"read_bytes_per_second": 0.0, "written_bytes_per_second": 5000.0, "busy_percent": 3.2}},
            "interfaces": {"eth0": {"received_bytes_per_second": 1500.0, "sent_bytes_per_second": 99.0, "errors_per_second": 0.5}}
        }"#;
        Load {
            at: at(890),
            ..serde_json::from_str(&json.replacen('{', "{\"at\":\"2026-11-20T09:00:00Z\",", 1))
                .unwrap()
        }
    }

    #[test]
    fn the_current_load() {
        let arguments = LoadArguments {
            target: None,
            sort: Sort::Memory,
            limit: 2,
            from: None,
            to: None,
            points: 1,
        };
        expect![[r#"
            at        2026-11-20T09:14:50Z (10 s ago)
            cpu       37.2 %, iowait 1.5 %
            memory    3.8 GiB of 7.7 GiB
            load      1.50 0.75 0.25
            pressure  cpu 12 %
            up        27 h

            UNIT           CPU     MEMORY    TASKS  READ       WRITTEN
            db.service      3.0 %   1.0 GiB      -  1.0 MiB/s        -
            nginx.service  12.5 %  50.0 MiB      5          -        -

            PID  PROCESS  CPU     MEMORY   UNIT
            812  ng\nx    12.5 %  976 KiB  nginx.service

            MOUNT  SIZE      AVAILABLE  USED
            /      37.2 GiB    953 MiB  97 %

            DEVICE  IN         OUT
            vda         0 B/s  4.8 KiB/s  3 % busy
            eth0    1.4 KiB/s     99 B/s  0.5 errors/s
        "#]]
        .assert_eq(&render_current(&load(), &arguments, &View::of_tests()));
    }

    #[test]
    fn the_course_of_it() {
        let samples = [load(), Load { at: at(900), ..Load::default() }];
        expect![[r#"
            TIME                  CPU     IOWAIT  MEMORY   SWAP  LOAD            PRESSURE
            2026-11-20T09:14:50Z  37.2 %   1.5 %  3.8 GiB   0 B  1.50 0.75 0.25  cpu 12 %
            2026-11-20T09:15:00Z       -       -        -     -  -               -
        "#]]
        .assert_eq(&render_course(&samples, &View::of_tests()));
    }
}
