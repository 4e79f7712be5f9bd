//! Netlink answers, built by hand and hostile, and the ones of this machine.

use super::*;
use proptest::prelude::*;

fn attribute(code: u16, value: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
    out.extend(code.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn message(kind: u16, head: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = [head.to_vec(), attributes.concat()].concat();
    let mut out = u32::try_from(body.len() + 16).unwrap().to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend([0; 10]);
    out.extend(body);
    out
}

fn link(index: u32, name: &[u8], more: &[Vec<u8>]) -> Vec<u8> {
    let head = [&[0; 4][..], &index.to_ne_bytes(), &0x1_1003_u32.to_ne_bytes(), &[0; 4]].concat();
    let attributes =
        [vec![attribute(3, name), attribute(4, &1500_u32.to_ne_bytes())], more.to_vec()];
    message(16, &head, &attributes.concat())
}

fn address(family: u8, length: u8, index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
    message(20, &[&[family, length, 0, 0][..], &index.to_ne_bytes()].concat(), attributes)
}

fn route(family: u8, length: u8, table: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    message(24, &[family, length, 0, 0, table, 3, 0, 1, 0, 0, 0, 0], attributes)
}

const V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

fn machine() -> [Vec<u8>; 3] {
    let mac = attribute(1, &[2, 0, 0, 0, 0, 1]);
    let kind = attribute(18, &attribute(1, b"veth\0"));
    let links = [
        link(2, b"eth0\0", &[mac, attribute(16, &[6])]),
        link(5, b"veth\x1b0\0", &[kind, attribute(10, &2_u32.to_ne_bytes())]),
    ];
    let addresses = [
        address(2, 24, 2, &[attribute(1, &[192, 0, 2, 255]), attribute(2, &[192, 0, 2, 1])]),
        address(10, 64, 2, &[attribute(1, &V6)]),
        address(10, 64, 2, &[attribute(1, &V6), attribute(8, &1_u32.to_ne_bytes())]),
        address(2, 24, 99, &[attribute(2, &[10, 0, 0, 1])]),
    ];
    let oif = |index: u32| attribute(4, &index.to_ne_bytes());
    let hop = |index: u32, gateway: &[u8]| {
        let attributes = attribute(5, gateway);
        let length = u16::try_from(attributes.len() + 8).unwrap();
        [&length.to_ne_bytes()[..], &[0, 0], &index.to_ne_bytes(), &attributes].concat()
    };
    let hops = [hop(2, &[192, 0, 2, 2]), hop(5, &[192, 0, 2, 3])].concat();
    let routes = [
        route(
            2,
            0,
            254,
            &[oif(2), attribute(5, &[192, 0, 2, 254]), attribute(6, &100_u32.to_ne_bytes())],
        ),
        route(2, 24, 254, &[oif(2), attribute(1, &[192, 0, 2, 0])]),
        route(2, 32, 255, &[oif(2), attribute(1, &[192, 0, 2, 1])]),
        route(10, 64, 254, &[oif(2), attribute(1, &V6), attribute(6, &1024_u32.to_ne_bytes())]),
        route(2, 8, 254, &[attribute(1, &[10, 0, 0, 0]), attribute(9, &hops)]),
    ];
    [links.concat(), addresses.concat(), routes.concat()]
}

#[test]
fn interfaces_and_routes() {
    let [links, addresses, routes] = machine();
    let network = parse(&links, &addresses, &routes);
    let interfaces: String = network
        .interfaces
        .iter()
        .map(|i| {
            let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
            let (mac, state, kind) = (or(&i.mac), or(&i.state), or(&i.link_kind));
            let (flags, addresses) = (i.flags.join(","), i.addresses.join(","));
            format!("{} {mac} {state} {kind} {flags} [{addresses}] {}\n", i.name, or(&i.master))
        })
        .collect();
    expect_test::expect![[r"
        eth0 02:00:00:00:00:01 up - up,broadcast,multicast,lower-up [192.0.2.1/24,2001:db8::7/64] -
        veth\x1b0 - - veth up,broadcast,multicast,lower-up [] eth0
    "]]
    .assert_eq(&interfaces);
    let routes: String = network
        .routes
        .iter()
        .map(|route| format!("{} via {}\n", route.id, route.gateway.as_deref().unwrap_or("-")))
        .collect();
    expect_test::expect![[r"
        10.0.0.0/8 dev eth0 via 192.0.2.2
        10.0.0.0/8 dev veth\x1b0 via 192.0.2.3
        192.0.2.0/24 dev eth0 via -
        2001:db8::7/64 dev eth0 via -
        default dev eth0 metric 100 via 192.0.2.254
    "]]
    .assert_eq(&routes);
}

#[test]
fn truncated_answers() {
    let [links, addresses, routes] = machine();
    for end in 0..routes.len() {
        let cut = |bytes: &[u8]| bytes[..end.min(bytes.len())].to_vec();
        let network = parse(&cut(&links), &cut(&addresses), &cut(&routes));
        assert!(network.interfaces.len() <= 2 && network.routes.len() <= 5);
    }
}

#[test]
fn this_machine() {
    let network = read(&Root::live()).unwrap();
    let loopback = network.interfaces.iter().find(|interface| interface.name == "lo").unwrap();
    assert!(loopback.flags.iter().any(|flag| flag == "loopback"));
    assert!(network.interfaces.is_sorted_by_key(|interface| &interface.name));
}

#[test]
fn the_way_to_this_machine() {
    let way = way_to(&Root::live(), Ipv4Addr::LOCALHOST).unwrap();
    assert_eq!(
        way,
        Way { interface: 1, hardware: None, source: Ipv4Addr::LOCALHOST, is_far: false }
    );
    assert_eq!(hardware("02:00:00:00:00:1f"), Some([2, 0, 0, 0, 0, 0x1f]));
    for bad in ["", "02:00", "02:00:00:00:00:00:00", "x2:00:00:00:00:00"] {
        assert_eq!(hardware(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn anything_goes_in(bytes: Vec<u8>, flip in 0_usize..600, to: u8) {
        parse(&bytes, &bytes, &bytes);
        parse_way(&bytes);
        let [mut links, mut addresses, mut routes] = machine();
        for answer in [&mut links, &mut addresses, &mut routes] {
            if let Some(byte) = answer.get_mut(flip) {
                *byte = to;
            }
        }
        parse(&links, &addresses, &routes);
    }
}
