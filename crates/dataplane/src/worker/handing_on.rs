//! Connections that a worker hands to a worker with fewer sessions.

use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;

use mio::Waker;

use super::by_hand::{ANY, World};
use super::*;
use crate::contact::Contact;

/// Two workers; connections come to the first one only.
struct Two {
    world: World,
    other: Worker,
    contact: Contact,
    endpoint: TcpListener,
    frontend: SocketAddr,
    clients: Vec<TcpStream>,
}

/// The parts from which a worker is made.
fn seat() -> (Poll, Contact, Receiver<Command>) {
    let poll = Poll::new().unwrap();
    let (contact, commands) = Contact::new(Waker::new(poll.registry(), Source::Waker.token()).unwrap());
    (poll, contact, commands)
}

impl Two {
    fn new() -> Self {
        // This worker is the first one.
        let ((_, own, _), (poll, contact, commands)) = (seat(), seat());
        let mut world = World::beside(Others::of(0, &[own, contact.clone()]));
        let other = world.another(poll, &contact, commands);
        let endpoint = TcpListener::bind(ANY).unwrap();
        endpoint.set_nonblocking(true).unwrap();
        let frontend = world.serve_tcp("web", endpoint.local_addr().unwrap());
        Self { world, other, contact, endpoint, frontend, clients: Vec::new() }
    }

    /// Opens one more connection, which the first worker accepts. Returns the number of sessions that each
    /// has or is about to have.
    fn connect(&mut self) -> [usize; 2] {
        self.clients.push(TcpStream::connect(self.frontend).unwrap());
        self.world.turn();
        self.counts()
    }

    fn counts(&self) -> [usize; 2] {
        [self.world.worker.tcp.sessions(), self.contact.sessions()]
    }

    /// Lets the other worker handle its commands.
    fn turn_other(&mut self) {
        self.other.has_commands = true;
        let mut events = Events::with_capacity(EVENTS);
        assert!(self.other.turn(&mut events).is_continue());
    }
}

#[test]
fn a_few_connections_are_shared_out_and_each_worker_connects_its_own() {
    let mut two = Two::new();
    let counts: Vec<[usize; 2]> = (0..6).map(|_| two.connect()).collect();
    assert_eq!(counts, [[1, 0], [1, 1], [2, 1], [3, 1], [3, 2], [4, 2]]);
    assert_eq!(two.other.tcp.sessions(), 0, "it has not looked yet");
    two.turn_other();
    assert_eq!((two.other.tcp.sessions(), two.counts()), (2, [4, 2]));
    two.endpoint.set_nonblocking(false).unwrap();
    for _ in 0..6 {
        two.endpoint.accept().unwrap();
    }
    let stats = two.world.stats();
    assert_eq!((stats.tcp_handed_on, stats.tcp_accepted, two.contact.stats.tcp_accepted.get()), (2, 4, 2));
}

#[test]
fn a_worker_that_may_be_about_to_end_is_handed_nothing() {
    let mut two = Two::new();
    two.clients.extend((0..3).map(|_| TcpStream::connect(two.frontend).unwrap()));
    let (done, _) = mpsc::channel();
    two.world.commands.send(Command::Refuse(None, done)).unwrap();
    assert!(two.world.worker.obey().is_continue());
    two.world.worker.stop_accepting();
    assert_eq!(two.counts(), [3, 0]);
}

#[test]
fn what_was_handed_to_a_worker_that_has_ended_is_kept() {
    let mut two = Two::new();
    // The old worker's commands are lost with it.
    let (poll, contact, commands) = seat();
    two.other = two.world.another(poll, &contact, commands);
    assert_eq!([two.connect(), two.connect()], [[1, 0], [2, 0]]);
}

#[test]
fn a_worker_that_is_handed_many_takes_no_more_at_a_time_than_a_listener_gives_it() {
    let mut two = Two::new();
    let many = 4 * ACCEPT_BATCH;
    // Until it has many more than the other one.
    while two.contact.sessions() <= ACCEPT_BATCH {
        two.clients.push(TcpStream::connect(two.frontend).unwrap());
        two.world.turn();
        while two.endpoint.accept().is_ok() {}
        assert!(two.clients.len() <= many);
    }
    two.turn_other();
    assert_eq!(two.other.tcp.sessions(), ACCEPT_BATCH);
    assert!(two.other.has_commands, "it goes on in the next turn");
    two.turn_other();
    assert_eq!(two.other.tcp.sessions(), ACCEPT_BATCH + 1);
}
