//! Every kind of address, client, protocol, policy and place of endpoints, over IPv4 and IPv6.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::thread;

use sluice_model::{Change, Family, Protocol, TrafficPolicy};
use sluice_testbed::lab::{Host, Lab, Outcome, PATIENCE, SILENCE};

use super::rules::{
    CLIENTS, Client, Fate, KINDS, Kind, PLACES, POLICIES, Place, Policy, Source, Who, fate, is_translated,
};
use super::world::{BACKEND, FAMILIES, PROTOCOLS, Sockets, World, name, names, service, slices};

/// How often a question that is answered is asked: twice, and, until every endpoint has answered, some more. On a
/// busy machine a connection may take more than one turn, so that two in a row get the same endpoint.
const QUESTIONS: RangeInclusive<usize> = 2..=8;

/// One cell of the matrix.
#[derive(Debug, Clone, Copy)]
struct Case {
    kind: Kind,
    client: Client,
    policy: Policy,
    place: Place,
    protocol: Protocol,
    family: Family,
    /// By a socket of IPv6, which has the IPv4 address in another form.
    is_mapped: bool,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        for client in CLIENTS {
            for policy in POLICIES {
                for place in PLACES {
                    for protocol in PROTOCOLS {
                        for family in FAMILIES {
                            cases.push(Case {
                                kind,
                                client,
                                policy,
                                place,
                                protocol,
                                family,
                                is_mapped: false,
                            });
                        }
                    }
                }
            }
        }
    }
    cases
}

/// Which Service has this policy, and endpoints in this place.
fn number(policy: Policy, place: Place) -> u8 {
    let place = match place {
        Place::Here => 1,
        Place::ElsewhereOnly => 2,
        Place::Nowhere => 3,
    };
    if policy == Policy::Local { place + 10 } else { place }
}

impl Case {
    fn host(self, lab: &Lab) -> &Host {
        match self.client {
            Client::Pod => lab.pod(0),
            Client::Node => lab.node(),
            Client::Outside => lab.outside(),
        }
    }

    fn fate(self) -> Fate {
        fate(self.kind, self.client, self.policy, self.place)
    }

    /// Whether it is to be translated where anything is.
    fn is_translated(self) -> bool {
        matches!(self.fate(), Fate::Answered(..)) && is_translated(self.kind, self.client)
    }

    /// The same, and whether those have carried it that are to. Nothing else may be under way.
    fn check_alone(self, world: &World) -> Result<(), String> {
        let before = Carried::so_far(world);
        let asked = self.check(world)? as u64;
        let carried = Carried::so_far(world).since(before);
        let is_right = match self.fate() {
            Fate::Answered(..) if world.has_sockets() && self.is_translated() => {
                carried == Carried { translated: asked, relayed: 0 }
            }
            Fate::Answered(..) => carried == Carried { translated: 0, relayed: asked },
            Fate::Refused | Fate::Dropped => carried.translated == 0,
        };
        if is_right { Ok(()) } else { Err(format!("{self:?}: {carried:?} of {asked}")) }
    }

    /// How often it was asked; or what is wrong, if something is.
    fn check(self, world: &World) -> Result<usize, String> {
        let fate = self.fate();
        let host = self.host(&world.lab);
        let outcomes = self.ask(fate, world);
        let wrong = |what: &str| Err(format!("{self:?}: {what}; wanted {fate:?}: {outcomes:?}"));
        match fate {
            Fate::Refused if outcomes != [self.refusal()] => wrong("not refused"),
            Fate::Dropped if outcomes != [Outcome::Silent] => wrong("not silent"),
            Fate::Refused | Fate::Dropped => Ok(outcomes.len()),
            Fate::Answered(who, source) => {
                let all_answered = outcomes.iter().all(|outcome| outcome.by().is_some());
                if !all_answered || who_answered(&outcomes) != self.endpoints(who, &world.lab) {
                    return wrong("not these endpoints, all of them");
                }
                // The lab's clients outside are sockets of this kernel in a namespace that is not the node's: where it is
                // decided at sockets, they look like pods, and keep their address as those do.
                let looks_like_a_pod =
                    world.has_sockets() && (self.kind, self.client) == (Kind::ClusterIp, Client::Outside);
                let source = if looks_like_a_pod { Source::Client } else { source };
                let is_right = |outcome: &Outcome| match (source, outcome.source()) {
                    (Source::Client, Some(seen)) => seen == host.ip(self.family),
                    (Source::Node, Some(seen)) => world.is_nodes(seen),
                    (_, None) => false,
                };
                if outcomes.iter().all(is_right) {
                    Ok(outcomes.len())
                } else {
                    wrong("not this source address")
                }
            }
        }
    }

    /// Asks, as often as it takes.
    fn ask(self, fate: Fate, world: &World) -> Vec<Outcome> {
        let host = self.host(&world.lab);
        let mut to = world.address(self.kind, number(self.policy, self.place), self.family);
        if let (true, IpAddr::V4(ip)) = (self.is_mapped, to.ip()) {
            to.set_ip(ip.to_ipv6_mapped().into());
        }
        let Fate::Answered(who, _) = fate else {
            let patience = if fate == Fate::Dropped { SILENCE } else { PATIENCE };
            return vec![host.ask(self.protocol, to, patience)];
        };
        let endpoints = self.endpoints(who, &world.lab);
        let mut outcomes = Vec::new();
        while outcomes.len() < *QUESTIONS.start()
            || (outcomes.len() < *QUESTIONS.end() && who_answered(&outcomes) != endpoints)
        {
            outcomes.push(host.ask(self.protocol, to, PATIENCE));
            if outcomes.last().is_some_and(|outcome| outcome.by().is_none()) {
                break;
            }
        }
        outcomes
    }

    /// A refused datagram of the node's own processes does not even leave, unless it is for the node itself: sendto(2)
    /// says EPERM, as it does with kube-proxy.
    fn refusal(self) -> Outcome {
        match (self.client, self.protocol) {
            (Client::Node, Protocol::Udp) if self.kind != Kind::NodePort => Outcome::Forbidden,
            _ => Outcome::Refused,
        }
    }

    fn endpoints(self, who: Who, lab: &Lab) -> BTreeSet<String> {
        match (who, self.place) {
            (Who::Local, _) => names([lab.pod(1)]),
            (Who::All, Place::Here) => names([lab.pod(1), lab.other_pod(0)]),
            (Who::All, _) => names([lab.other_pod(0)]),
        }
    }
}

/// Who has carried how many connections and flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Carried {
    /// The programs, to the endpoint.
    translated: u64,
    /// The workers.
    relayed: u64,
}

impl Carried {
    fn so_far(world: &World) -> Self {
        let stats = world.proxy().stats();
        Self {
            translated: world.proxy().observer().translated().unwrap_or(0),
            relayed: stats.tcp_accepted + stats.udp_flows_opened,
        }
    }

    fn since(self, before: Self) -> Self {
        Self { translated: self.translated - before.translated, relayed: self.relayed - before.relayed }
    }
}

/// Connects until the relay has seen all endpoints serve, to which it would be left otherwise.
fn prove(world: &World, cases: &[Case]) {
    for case in cases.iter().filter(|case| case.protocol == Protocol::Tcp && case.is_translated()) {
        let is_left_to_relay = || {
            let before = Carried::so_far(world);
            case.ask(case.fate(), world);
            Carried::so_far(world).since(before).relayed > 0
        };
        assert!((0..5).any(|_| !is_left_to_relay()), "{case:?}");
    }
}

fn who_answered(outcomes: &[Outcome]) -> BTreeSet<String> {
    outcomes.iter().filter_map(Outcome::by).map(str::to_owned).collect()
}

#[test]
fn who_answers_what_it_sees_who_is_refused_and_who_hears_nothing() {
    check_all(|lab, ()| World::new(lab, |_| {}), || ());
}

#[test]
fn the_same_where_it_is_decided_at_the_sockets() {
    check_all(|lab, sockets| World::with_sockets(sockets, lab), Sockets::new);
}

/// Checks every case; what is `before` the lab is for its proxy.
fn check_all<T>(proxy: impl FnOnce(Lab, T) -> World, before: impl FnOnce() -> T) {
    let before = before();
    let lab = Lab::new().unwrap_or_else(|error| panic!("{error}"));
    // The kernel sends one host no more than about one ICMP error a second.
    for setting in ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"] {
        lab.node().ns.set(setting, "0").expect("the limit can be lifted");
    }
    let mut world = proxy(lab, before);
    // They end before the world does, which waits for whoever is in its cgroup.
    let servers = [world.lab.pod(1), world.lab.other_pod(0)];
    let _servers = servers.map(|host| host.serve(BACKEND).expect("the port is free"));
    let mut changes = Vec::new();
    for policy in POLICIES {
        let model = if policy == Policy::Local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        for place in PLACES {
            let (here, there) = (world.lab.pod(1), world.lab.other_pod(0));
            let endpoints: &[(&Host, &str)] = match place {
                Place::Here => &[(here, "node"), (there, "other")],
                Place::ElsewhereOnly => &[(there, "other")],
                Place::Nowhere => &[],
            };
            let number = number(policy, place);
            changes.push(Change::Apply(service(number, model).into()));
            changes.extend(slices(number, endpoints));
        }
    }
    assert_eq!(changes.len(), 6 * 3, "{:?}", name(1));
    world.apply(changes);

    // One Service at a time, so that nobody else takes its endpoints' turns; the silent ones side by side.
    let mut cases = cases();
    let of_v4: Vec<Case> = cases.iter().filter(|case| case.family == Family::V4).copied().collect();
    cases.extend(of_v4.into_iter().map(|case| Case { is_mapped: true, ..case }));
    let count = cases.len();
    let (silent, others): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.fate() == Fate::Dropped);
    assert_eq!((silent.len(), others.len()), (36, 396));
    if world.has_sockets() {
        prove(&world, &others);
    }
    let mut wrong: Vec<String> = others.iter().filter_map(|case| case.check_alone(&world).err()).collect();
    let world = &world;
    let before = Carried::so_far(world);
    thread::scope(|scope| {
        let threads: Vec<_> =
            silent.iter().map(|case| scope.spawn(move || case.check(world).err())).collect();
        wrong.extend(threads.into_iter().filter_map(|thread| thread.join().expect("it does not panic")));
    });
    assert_eq!(Carried::so_far(world).since(before).translated, 0, "of those that hear nothing");
    assert!(wrong.is_empty(), "{} of {count} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
