//! Agents that end, one way or another, and those that come after them.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use rustix::process::Signal;
use sluice_model::{Family, Protocol};
use sluice_testbed::lab::{Host, Outcome, PATIENCE, Process, SILENCE};

use crate::manifests::{BACKEND, Service, cluster_ip};
use crate::scene::{Conversation, READY, Scene, until, well};
use crate::slow_nft::SlowNft;

#[test]
fn after_kill_9_the_next_agent_answers_the_first_question_and_those_asked_before_it_came() {
    let scene = Scene::new();
    let mut agent = scene.start();
    let conversations: Vec<_> =
        scene.questions(1).into_iter().map(|(host, to)| Conversation::begin(host, to)).collect();
    agent.kill();
    conversations.into_iter().for_each(Conversation::assert_is_reset);

    let questions = scene.questions(2);
    thread::scope(|scope| {
        let ask = |protocol, patience| {
            let ask = move |(host, to): &(&Host, SocketAddr)| host.ask(protocol, *to, patience);
            questions.iter().map(|question| scope.spawn(move || ask(question))).collect::<Vec<_>>()
        };
        let meanwhile = ask(Protocol::Tcp, PATIENCE);
        for datagram in ask(Protocol::Udp, SILENCE) {
            assert_eq!(datagram.join().unwrap(), Outcome::Silent);
        }
        until("all are connecting", || questions.iter().all(|(host, to)| is_connecting(host, *to)));
        let _agent = scene.start();
        scene.assert_served(1);
        for (question, outcome) in questions.iter().zip(meanwhile) {
            let outcome = outcome.join().unwrap();
            assert!(outcome.by().is_some(), "{} from {}: {outcome:?}", question.1, question.0.name);
        }
    });
}

/// Which sides of a session have ended before it is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Neither,
    Client,
    Endpoint,
}

#[test]
fn kill_9_resets_both_ends_of_sessions_that_are_open_and_of_those_that_one_side_has_ended() {
    let scene = Scene::new();
    let host = scene.lab.other_pod(1);
    scene.apply(&Service::new(3).there(host));
    let mut agent = scene.start();
    let mut sessions = Vec::new();
    for (from, to) in scene.questions(3) {
        let family = Family::of(to.ip());
        let listener = host.ns.run(|| TcpListener::bind((host.ip(family), BACKEND))).unwrap();
        for ended in [Ended::Neither, Ended::Client, Ended::Endpoint] {
            let client = from.tcp_stream(to, PATIENCE).unwrap();
            let (endpoint, _) = listener.accept().unwrap();
            endpoint.set_read_timeout(Some(PATIENCE)).unwrap();
            let both = [("client", client), ("endpoint", endpoint)];
            let [(_, client), (_, endpoint)] = &both;
            match ended {
                Ended::Neither => {}
                Ended::Client => end(client, endpoint),
                Ended::Endpoint => end(endpoint, client),
            }
            sessions.push((format!("{ended:?}, {} to {to}", from.name), ended, both));
        }
    }
    agent.kill();
    for (context, ended, both) in sessions {
        for (side, stream) in both {
            let has_heard_the_end =
                matches!((ended, side), (Ended::Client, "endpoint") | (Ended::Endpoint, "client"));
            let mut error = None;
            until(&format!("{context}: the {side} is reset"), || {
                error = stream.take_error().unwrap();
                error.is_some()
            });
            // To whoever has heard the end a reset is that there is nobody to write to (`tcp_reset`).
            let wanted = if has_heard_the_end { ErrorKind::BrokenPipe } else { ErrorKind::ConnectionReset };
            assert_eq!(error.map(|error| error.kind()), Some(wanted), "{context}: the {side}");
        }
    }
}

/// Ends one side of a session, of which the other hears.
fn end(from: &TcpStream, mut to: &TcpStream) {
    from.shutdown(Shutdown::Write).unwrap();
    assert_eq!(to.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_restart_with_unchanged_services_changes_nothing_in_the_kernel_but_who_the_owner_is() {
    let scene = Scene::new();
    let mut agent = scene.start();
    let before = kernel(&scene);
    let monitor = well(scene.lab.node().spawn(Command::new("nft").arg("monitor")));
    mark(&scene, &monitor, "begin");
    agent.kill();
    assert_eq!(kernel(&scene), before);
    let killed_before = scene.start();
    scene.assert_served(1);
    killed_before.signal(Signal::TERM).unwrap();
    let _agent = scene.start();
    scene.assert_served(1);
    mark(&scene, &monitor, "end");

    let said = monitor.lines();
    let begin = said.iter().rposition(|line| line.contains("begin")).unwrap();
    let end = said.iter().position(|line| line.contains("end")).unwrap();
    // What begins like this says which program made the change before it.
    let lines = said[begin + 1..end].iter().filter(|line| !line.starts_with('#'));
    let (owners, changes): (Vec<_>, Vec<_>) = lines.partition(|line| line.contains("inet sluice_owner"));
    assert_eq!(owners.len(), 4, "for each of two agents one element goes and one comes: {owners:#?}");
    assert!(changes.is_empty(), "{changes:#?}");
    assert_eq!(kernel(&scene), before);
}

#[test]
fn after_sigterm_all_is_served_until_a_successor_is_here_sessions_finish_and_the_rules_stay() {
    let scene = Scene::new();
    // However long the rest takes, it is not what ends the agent.
    let mut first = well(scene.lab.node().spawn(scene.command().args(["--grace-period", "600"])));
    well(first.wait_for(READY, PATIENCE));
    let mut conversations: Vec<_> =
        scene.questions(1).into_iter().map(|(host, to)| Conversation::begin(host, to)).collect();
    let mut all_say = |line| conversations.iter_mut().for_each(|conversation| conversation.say(line));
    let before = kernel(&scene);
    first.signal(Signal::TERM).unwrap();
    well(first.wait_for("stopping", PATIENCE));
    scene.assert_served(1);
    all_say("nothing has changed");
    assert_eq!(kernel(&scene), before);
    scene.apply(&scene.service(3));
    let is_answered = |(host, to): (&Host, SocketAddr)| host.ask(Protocol::Tcp, to, SILENCE).by().is_some();
    until("a new Service is served", || scene.questions(3).into_iter().all(is_answered));

    let before = kernel(&scene);
    let mut second = scene.start();
    well(first.wait_for("no new connections from now on: another agent", PATIENCE));
    scene.assert_served(1);
    scene.assert_served(3);
    all_say("another agent is here");
    assert!(!first.lines().iter().any(|line| line.contains("stopped")));
    drop(conversations);
    assert!(well(first.wait(PATIENCE)).success());

    second.signal(Signal::TERM).unwrap();
    assert!(well(second.wait(PATIENCE)).success());
    assert_eq!(kernel(&scene), before);
    let _third = scene.start();
    scene.assert_served(1);
}

#[test]
fn after_sigterm_an_agent_without_connections_ends_and_one_with_some_when_they_have_ended() {
    let scene = Scene::new();
    let mut agent = well(scene.lab.node().spawn(scene.command().args(["--grace-period", "600"])));
    well(agent.wait_for(READY, PATIENCE));
    let conversation = Conversation::begin(scene.lab.pod(0), cluster_ip(1, Family::V4));
    agent.signal(Signal::TERM).unwrap();
    well(agent.wait_for("stopping", PATIENCE));
    drop(conversation);
    well(agent.wait_for("no connection is open", PATIENCE));
    assert!(well(agent.wait(PATIENCE)).success());

    let mut idle = scene.start();
    idle.signal(Signal::TERM).unwrap();
    well(idle.wait_for("no connection is open", PATIENCE));
    assert!(well(idle.wait(PATIENCE)).success());
}

#[test]
fn a_new_agent_takes_over_from_an_old_one_without_a_failed_question() {
    let scene = Scene::new();
    let mut agent = scene.start();
    let loads = scene.load();
    for _ in 0..3 {
        let next = scene.start();
        loads.assert_answered();
        agent.signal(Signal::TERM).unwrap();
        assert!(well(agent.wait(PATIENCE)).success());
        loads.assert_answered();
        agent = next;
    }
    loads.assert_unharmed();
}

/// A client far away: the last packet of its handshake comes when the agent that has answered it has ended.
#[test]
fn a_handshake_that_is_under_way_goes_on_with_the_next_agent() {
    const LAST_PACKETS: &str = "table inet far {
        chain output {
            type filter hook output priority 0;
            tcp dport { 80, 30001 } tcp flags & (syn | ack) == ack drop
        }
    }";
    let scene = Scene::new();
    let mut first = scene.start();
    let hosts = [scene.lab.pod(0), scene.lab.outside()];
    hosts.iter().for_each(|host| well(host.ns.nft_file(LAST_PACKETS)));
    let mut streams = Vec::new();
    for (host, to) in scene.questions(1) {
        if host.name != "node" {
            streams.push(host.tcp_stream(to, PATIENCE).unwrap());
        }
    }
    let _second = scene.start();
    first.signal(Signal::TERM).unwrap();
    assert!(well(first.wait(PATIENCE)).success());
    for host in hosts {
        well(host.ns.nft("delete table inet far"));
    }
    for stream in streams {
        Conversation::on(stream).say("here I am");
    }
}

/// Everything that an agent makes in the kernel.
fn kernel(scene: &Scene) -> String {
    let ns = &scene.lab.node().ns;
    let ip = ["rule", "-6 rule", "route show table 7583", "-6 route show table 7583"]
        .map(|what| well(ns.ip(what)));
    scene.nft("ruleset") + &ip.concat()
}

/// Whether a host has sent a SYN there, and waits for an answer.
fn is_connecting(host: &Host, to: SocketAddr) -> bool {
    const SYN_SENT: &str = "02";
    let table = host.ns.read(if to.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" }).unwrap();
    let port = format!(":{:04X}", to.port());
    table.lines().any(|line| {
        let [_, _, remote, state] = line.split_whitespace().take(4).collect::<Vec<_>>()[..] else {
            return false;
        };
        remote.ends_with(&port) && state == SYN_SENT
    })
}

/// Adds and deletes a table until the monitor has seen it: it needs some time to begin.
fn mark(scene: &Scene, monitor: &Process, name: &str) {
    until("the monitor sees a change", || {
        well(scene.lab.node().ns.nft_file(&format!("add table ip {name}\ndelete table ip {name}\n")));
        monitor.wait_for(name, SILENCE).is_ok()
    });
}

#[test]
fn an_agent_that_waits_for_nft_at_its_start_ends_when_it_is_told_to() {
    let scene = Scene::new();
    // Before anything is done, and once the rules are written: the second agent finds the kernel's settings made.
    let from_the_start = SlowNft::new();
    from_the_start.slow_down();
    for nft in [from_the_start, SlowNft::after_the_first_transaction()] {
        let mut command = scene.command();
        nft.of(&mut command);
        let mut agent = well(scene.lab.node().spawn(&command));
        until("nft runs", || nft.is_waited_for());
        well(agent.signal(Signal::TERM));
        assert!(well(agent.wait(PATIENCE)).success(), "{:?}", agent.lines());
        well(agent.wait_for("SIGTERM while it starts", PATIENCE));
        nft.go_on();
        // It is in nobody's way.
        let mut next = scene.start();
        scene.assert_served(1);
        well(next.signal(Signal::TERM));
        assert!(well(next.wait(PATIENCE)).success(), "{:?}", next.lines());
    }
}
