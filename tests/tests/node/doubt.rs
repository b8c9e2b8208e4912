//! Endpoints in doubt where connections are decided at the clients' sockets: new ones, and those that have failed. The
//! relay has connections to them, and so no client an error.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Host, Lab, Load, Outcome, PATIENCE, Server};

use super::rules::Kind;
use super::world::{BACKEND, FAMILIES, PROTOCOLS, Sockets, World, service, slices};

/// A lab with an agent that relays, and Service 1 with these endpoints; of them these serve.
fn world(endpoints: &[&str], serving: &[&str]) -> (World, BTreeMap<String, Server>) {
    let sockets = Sockets::new();
    let lab = Lab::builder().pods(4).other_pods(4).build().unwrap_or_else(|error| panic!("{error}"));
    let servers = serving.iter().map(|name| ((*name).to_owned(), serve(&lab, name))).collect();
    let mut world = World::with_sockets(sockets, lab);
    world.apply([Change::Apply(service(1, TrafficPolicy::Cluster).into())]);
    set(&mut world, endpoints);
    world.tick();
    (world, servers)
}

fn host<'a>(lab: &'a Lab, name: &str) -> &'a Host {
    let number = |text: &str| text.parse().unwrap();
    match name.strip_prefix("other-pod-") {
        Some(other) => lab.other_pod(number(other)),
        None => lab.pod(number(name.strip_prefix("pod-").unwrap())),
    }
}

fn serve(lab: &Lab, name: &str) -> Server {
    host(lab, name).serve(BACKEND).unwrap()
}

/// Has Service 1 have these endpoints.
fn set(world: &mut World, endpoints: &[&str]) {
    let endpoints: Vec<(&Host, &str)> = endpoints
        .iter()
        .map(|name| (host(&world.lab, name), if name.starts_with("other") { "other" } else { "node" }))
        .collect();
    let changes = slices(1, &endpoints);
    world.apply(changes);
}

/// Who answers so many questions of a pod, one after the other.
fn answers(world: &mut World, times: usize) -> BTreeMap<String, usize> {
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        // The agent is alive.
        world.tick();
        let outcome = world.lab.pod(0).ask(Protocol::Tcp, to, PATIENCE);
        let by = outcome.by().map_or_else(|| format!("{outcome:?}"), str::to_owned);
        *answers.entry(by).or_default() += 1;
    }
    answers
}

/// How long a client waits for an endpoint here: until the kernel has asked it a second time, and some more.
const A_WHILE: Duration = Duration::from_secs(4);

fn each(names: &[&str], times: usize) -> BTreeMap<String, usize> {
    names.iter().map(|name| ((*name).to_owned(), times)).collect()
}

/// Has a host answer nothing any more.
fn silence(host: &Host) {
    let silence = "add table inet t\nadd chain inet t c { type filter hook input priority 0; policy drop; }";
    host.ns.nft_file(silence).unwrap();
    // Those of IPv6 are heard of, or nobody is found out to be silent.
    host.ns.nft_file("add rule inet t c icmpv6 type nd-neighbor-solicit accept").unwrap();
}

/// How many connections workers have had so far.
fn relayed(world: &World) -> u64 {
    world.proxy().stats().tcp_established
}

/// Lets the agent live on until something is so.
fn until(world: &mut World, what: &str, mut is: impl FnMut(&World) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is(world) {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        world.tick();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Load on Service 1 from several clients of this node, over both families.
fn load(world: &World, protocol: Protocol) -> Vec<Load> {
    let hosts = [world.lab.pod(0), world.lab.pod(3), world.lab.node()];
    let pairs = hosts.into_iter().flat_map(|host| FAMILIES.map(|family| (host, family)));
    pairs.map(|(host, family)| host.load(protocol, world.address(Kind::ClusterIp, 1, family))).collect()
}

fn answered(loads: &[Load]) -> u64 {
    loads.iter().map(|load| load.report().answered).sum()
}

/// Lets so many more questions be answered.
fn go_on(world: &mut World, loads: &[Load], more: u64) {
    let enough = answered(loads) + more;
    until(world, "load is answered", |_| answered(loads) >= enough);
}

/// Ends it, with the agent alive: how many were answered. None was not.
fn assert_unharmed(world: &mut World, loads: Vec<Load>) -> u64 {
    let reports = std::thread::scope(|scope| {
        let ending = scope.spawn(|| loads.into_iter().map(Load::stop).collect::<Vec<_>>());
        until(world, "load ends", |_| ending.is_finished());
        ending.join().unwrap()
    });
    let failures: Vec<_> = reports.iter().flat_map(|report| &report.failures).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    reports.iter().map(|report| report.answered).sum()
}

#[test]
fn an_endpoint_that_refuses_from_the_start_costs_no_client_an_error() {
    let (mut world, _servers) = world(&["pod-1", "other-pod-0", "other-pod-1"], &["pod-1", "other-pod-0"]);
    let loads = load(&world, Protocol::Tcp);
    go_on(&mut world, &loads, 600);
    let answered = assert_unharmed(&mut world, loads);
    let relayed = relayed(&world);
    assert!(
        relayed < answered * 2 / 3,
        "{relayed} of {answered} were relayed: those to two of three are not"
    );
}

#[test]
fn an_endpoint_that_is_silent_from_the_start_costs_no_client_an_error() {
    let (mut world, _servers) =
        world(&["pod-1", "other-pod-0", "other-pod-1"], &["pod-1", "other-pod-0", "other-pod-1"]);
    silence(world.lab.other_pod(1));
    let loads = load(&world, Protocol::Tcp);
    go_on(&mut world, &loads, 600);
    assert_unharmed(&mut world, loads);
}

#[test]
fn no_endpoint_loses_its_turns_by_being_new() {
    let (mut world, _servers) =
        world(&["pod-1", "other-pod-0"], &["pod-1", "other-pod-0", "other-pod-1", "pod-2"]);
    assert_eq!(answers(&mut world, 20), each(&["pod-1", "other-pod-0"], 10));
    assert_eq!(relayed(&world), 2, "one to each has proven it");
    set(&mut world, &["pod-1", "other-pod-0", "other-pod-1", "pod-2"]);
    let all = ["pod-1", "other-pod-0", "other-pod-1", "pod-2"];
    assert_eq!(answers(&mut world, 40), each(&all, 10));
    assert_eq!(relayed(&world), 4);
    // Whoever was there before is known.
    set(&mut world, &all[..3]);
    assert_eq!(answers(&mut world, 30), each(&all[..3], 10));
    assert_eq!(relayed(&world), 4);
}

#[test]
fn one_that_dies_costs_one_client_an_error_and_has_its_turns_again_when_it_is_back() {
    let both = ["pod-1", "other-pod-0"];
    let (mut world, mut servers) = world(&both, &both);
    assert_eq!(answers(&mut world, 4), each(&both, 2));
    drop(servers.remove("other-pod-0"));
    let mut found = answers(&mut world, 10);
    assert_eq!(found.remove(&format!("{:?}", Outcome::Refused)), Some(1), "{found:?}");
    assert_eq!(found, each(&["pod-1"], 9), "whoever has found it out is the last");
    assert_eq!(answers(&mut world, 20), each(&["pod-1"], 20));

    let _back = serve(&world.lab, "other-pod-0");
    until_translated(&mut world, &both);
}

#[test]
fn one_that_falls_silent_costs_those_an_error_that_ask_before_it_is_found_out() {
    const AT_ONCE: usize = 8;
    let both = ["pod-1", "other-pod-0"];
    let (mut world, _servers) = world(&both, &both);
    assert_eq!(answers(&mut world, 4), each(&both, 2));
    silence(world.lab.other_pod(0));
    let to = world.address(Kind::ClusterIp, 1, Family::V4);
    let pod = world.lab.pod(0).clone();
    std::thread::scope(|scope| {
        // They wait until the silence is found out, after a second.
        let asking = [(); AT_ONCE].map(|()| scope.spawn(|| pod.ask(Protocol::Tcp, to, A_WHILE)));
        until(&mut world, "all have been told", |_| asking.iter().all(|asked| asked.is_finished()));
        let outcomes = asking.map(|asked| asked.join().unwrap());
        let answered = outcomes.iter().filter(|outcome| outcome.by() == Some("pod-1")).count();
        let silent = outcomes.iter().filter(|outcome| **outcome == Outcome::Silent).count();
        // Fewer where some ask later than that.
        assert!((1..=AT_ONCE / 2).contains(&silent) && answered + silent == AT_ONCE, "{outcomes:?}");
    });
    assert_eq!(answers(&mut world, 6), each(&["pod-1"], 6));
}

/// Waits until no connection is relayed, and both have their turns.
fn until_translated(world: &mut World, endpoints: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = relayed(world);
        let found = answers(world, endpoints.len() * 2);
        if relayed(world) == before && found == each(endpoints, 2) {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}");
    }
}

#[test]
fn one_that_the_relay_finds_dead_costs_clients_of_this_node_no_error() {
    let both = ["pod-1", "other-pod-0"];
    let (mut world, mut servers) = world(&both, &both);
    assert_eq!(answers(&mut world, 4), each(&both, 2));
    drop(servers.remove("other-pod-0"));
    let from_outside = world.address(Kind::NodePort, 1, Family::V4);
    for _ in 0..4 {
        let outcome = world.lab.outside().ask(Protocol::Tcp, from_outside, PATIENCE);
        assert_eq!(outcome.by(), Some("pod-1"), "{outcome:?}");
    }
    assert_eq!(answers(&mut world, 20), each(&["pod-1"], 20));
}

#[test]
fn where_all_are_in_doubt_the_relay_serves() {
    let both = ["pod-1", "other-pod-0"];
    let (mut world, mut servers) = world(&both, &both);
    assert_eq!(answers(&mut world, 4), each(&both, 2));
    servers.clear();
    // Each costs the client that finds it out an error; from then on the relay says that nobody is there.
    let [refused, reset] = [Outcome::Refused, Outcome::Reset].map(|outcome| format!("{outcome:?}"));
    assert_eq!(answers(&mut world, 6), [(refused, 2), (reset, 4)].into());
    let _back = both.map(|name| serve(&world.lab, name));
    until_translated(&mut world, &both);
}

#[test]
fn all_endpoints_are_replaced_under_load_while_the_old_ones_serve_on() {
    let rounds = [["pod-1", "other-pod-0"], ["other-pod-1", "other-pod-2"], ["pod-2", "other-pod-3"]];
    let (mut world, _servers) = world(&rounds[0], &rounds.concat());
    let loads: Vec<Load> = PROTOCOLS.into_iter().flat_map(|protocol| load(&world, protocol)).collect();
    go_on(&mut world, &loads, 50);
    for round in 1..=9 {
        let (old, new) = (rounds[(round - 1) % 3], rounds[round % 3]);
        // As a Deployment does it: one comes, one goes.
        for endpoints in [vec![old[0], old[1], new[0]], vec![old[1], new[0]], vec![old[1], new[0], new[1]]] {
            set(&mut world, &endpoints);
            go_on(&mut world, &loads, 10);
        }
        set(&mut world, &new);
        go_on(&mut world, &loads, 30);
    }
    assert_unharmed(&mut world, loads);
}
