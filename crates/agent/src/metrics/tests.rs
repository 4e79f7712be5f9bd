use super::*;
use model::Time;
use model::load::{HostLoad, InterfaceLoad, UnitLoad, VmLoad, VmmLoad};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const UNIT: &str = "microvm@web.service";

struct Told {
    _sample: watch::Sender<Option<Arc<Sample>>>,
    _standing: watch::Sender<Standing>,
    _units: watch::Sender<Option<Arc<Vec<Unit>>>>,
    _user_vms: watch::Sender<UserVms>,
}

struct Bench {
    address: SocketAddr,
    stop: CancellationToken,
    /// What the figures are made of; they live as long as it does.
    _sources: Told,
}

impl Bench {
    async fn start(token: Option<&str>, units: Vec<Unit>, load: Load) -> Self {
        let sample = Sample { at: Instant::now(), load, faults: vec!["units".to_owned()] };
        let (sample, samples) = watch::channel(Some(Arc::new(sample)));
        let standing = Standing { waiting: 3, version: Some(12), ..Standing::default() };
        let (standing, standings) = watch::channel(standing);
        let (units, all_units) = watch::channel(Some(Arc::new(units)));
        let of_alice = [("alice".to_owned(), vec![unit("alice/microvm-notes.service")])];
        let (user_vms, all_user_vms) = watch::channel(UserVms::from(of_alice));
        let sources = Sources {
            node: HostId::new("n1").unwrap(),
            token: token.map(str::to_owned),
            sample: samples,
            standing: standings,
            units: all_units,
            user_vms: all_user_vms,
        };
        let address = Some("127.0.0.1:0".parse().unwrap());
        let listener = bind(address).await.unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "ended by the token")]
        tokio::spawn(serve(listener, sources, stop.clone()));
        let told =
            Told { _sample: sample, _standing: standing, _units: units, _user_vms: user_vms };
        Self { address, stop, _sources: told }
    }

    async fn ask(&self, head: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn unit(id: &str) -> Unit {
    Unit {
        id: id.to_owned(),
        active_state: "active".to_owned(),
        sub_state: "running".to_owned(),
        exec_start: vec![vec!["/usr/bin/qemu-system-x86_64".to_owned()]],
        limits: [("MemoryMax".to_owned(), 1024)].into(),
        ..Unit::default()
    }
}

fn load() -> Load {
    let vmm = VmmLoad {
        at: Some(Time::from_seconds(90)),
        fault: Some("no answer".to_owned()),
        vcpus: Some(2),
        ..VmmLoad::default()
    };
    let vm = VmLoad {
        taps: Some(vec!["vm-web".to_owned()]),
        boot_ms: Some(4200),
        memory_peak_bytes: Some(768),
        oom_kills: Some(0),
        vmm: Some(vmm),
        ..VmLoad::default()
    };
    let used = UnitLoad { memory_bytes: Some(512), vm: Some(Box::new(vm)), ..UnitLoad::default() };
    let tap = InterfaceLoad { sent_bytes_per_second: Some(7.0), ..InterfaceLoad::default() };
    Load {
        at: Time::from_seconds(100),
        host: HostLoad { cpu_percent: Some(12.5), ..HostLoad::default() },
        units: [(UNIT.to_owned(), used)].into(),
        interfaces: [("vm-web".to_owned(), tap)].into(),
        collector_age_seconds: [("units".to_owned(), 1.0), ("files".to_owned(), 2.0)].into(),
        ..Load::default()
    }
}

#[tokio::test]
async fn figures_of_a_node() {
    let mut full = unit("microvm@full.service");
    full.active_state = "failed".to_owned();
    full.result = Some("oom-kill".to_owned());
    let units = vec![unit(UNIT), full, unit("nginx.service"), unit("microvm@..%2f.service")];
    let bench = Bench::start(None, units, load()).await;
    let answer = bench.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"));
    for line in [
        "safetytwin_agent_delivers 1",
        "safetytwin_agent_waiting_deltas 3",
        "safetytwin_agent_version 12",
        "safetytwin_agent_collector_fault{collector=\"files\"} 0",
        "safetytwin_agent_collector_fault{collector=\"units\"} 1",
        "safetytwin_node_cpu_percent 12.5",
        "safetytwin_node_vm_info{vm=\"web@n1\",node=\"n1\",name=\"web\",unit=\"microvm@web.service\",vmm=\"qemu\",owner=\"\"} 1",
        "safetytwin_node_vm_state{vm=\"web@n1\"} 3",
        "safetytwin_node_vm_state{vm=\"alice:notes@n1\"} 3",
        "safetytwin_node_vm_oom_killed{vm=\"web@n1\"} 0",
        "safetytwin_node_vm_oom_killed{vm=\"full@n1\"} 1",
        "safetytwin_node_vm_memory_bytes{vm=\"web@n1\"} 512",
        "safetytwin_node_vm_boot_seconds{vm=\"web@n1\"} 4.2",
        "safetytwin_node_vm_memory_peak_bytes{vm=\"web@n1\"} 768",
        "safetytwin_node_vm_cpu_limit_percent{vm=\"web@n1\"} 200",
        "safetytwin_node_vm_memory_limit_bytes{vm=\"web@n1\"} 1024",
        "safetytwin_node_vm_interface_received_bytes_per_second{vm=\"web@n1\",device=\"vm-web\"} 7",
        "safetytwin_node_vm_vmm_answers{vm=\"web@n1\"} 0",
        "safetytwin_node_vm_vcpus{vm=\"web@n1\"} 2",
    ] {
        assert!(answer.lines().any(|one| one == line), "{line}\n{answer}");
    }
    let age = answer.lines().find(|line| line.starts_with("safetytwin_node_vm_vmm_age_seconds"));
    let age: f64 = age.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!((10.0..20.0).contains(&age), "{age}");
    assert!(!answer.contains("nginx") && !answer.contains("%2f"));
    let open = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n";
    assert!(bench.ask(open).await.ends_with("# EOF\n"));
}

#[tokio::test]
async fn two_units_of_one_name_are_one_vm() {
    let units = vec![unit("microvm@a-b.service"), unit("microvm@a\\x2db.service")];
    let bench = Bench::start(None, units, load()).await;
    let answer = bench.ask("GET /metrics HTTP/1.1\r\n\r\n").await;
    let told = |text: &str| answer.lines().filter(|line| line.starts_with(text)).count();
    assert_eq!(told("safetytwin_node_vm_state{vm=\"a-b@n1\"}"), 1, "{answer}");
    assert_eq!(told("safetytwin_node_vm_info{vm=\"a-b@n1\""), 1, "{answer}");
    assert!(answer.contains("unit=\"microvm@a-b.service\""), "{answer}");
}

#[tokio::test]
async fn who_may_not_is_told_nothing() {
    let bench = Bench::start(Some("secret"), vec![unit(UNIT)], load()).await;
    let answer = bench.ask("GET /metrics HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 401") && !answer.contains("web@n1"), "{answer}");
    let answer = bench.ask("GET /metrics HTTP/1.1\r\nAuthorization: Bearer secret\r\n\r\n").await;
    assert!(answer.contains("safetytwin_node_vm_state{vm=\"web@n1\"} 3"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_holds_up_nobody_for_long() {
    let bench = Bench::start(None, Vec::new(), Load::default()).await;
    let mut silent = Vec::new();
    for _ in 0..AT_ONCE {
        silent.push(TcpStream::connect(bench.address).await.unwrap());
    }
    let answer = bench.ask("GET /metrics HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
