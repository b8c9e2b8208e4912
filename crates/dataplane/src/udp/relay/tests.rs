use std::net::{Ipv4Addr, UdpSocket};
use std::num::NonZeroUsize;

use mio::Poll;
use sluice_model::Protocol;

use super::*;
use crate::Config;
use crate::local_ports::LocalPorts;
use crate::test_table;
use crate::timers::Timers;

#[test]
fn a_turn_opens_few_flows_however_many_clients_wait() {
    const CLIENTS: usize = 4 * OPENED_PER_TURN;
    let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = bind();
    let listener = socket::listen((Ipv4Addr::LOCALHOST, 0).into(), None).unwrap();
    let frontend = listener.local_addr().unwrap();
    let writer = test_table::writer(frontend, Protocol::Udp, &[endpoint.local_addr().unwrap()]);
    let poll = Poll::new().unwrap();
    let mut core = Core {
        registry: poll.registry().try_clone().unwrap(),
        timers: Timers::default(),
        reader: writer.table().reader(),
        stats: Arc::default(),
        descriptors: Descriptors::new(4 * CLIENTS),
        local_ports: LocalPorts::with_range(32_768..=60_999),
        marks: None,
        half_closed_idle: Config::HALF_CLOSED_IDLE,
        now: Instant::now(),
    };
    let limits = FlowLimits::new(NonZeroUsize::new(4 * CLIENTS).unwrap(), 100, Config::UDP_IDLE);
    let ephemeral_ports = Descriptors::new(4 * CLIENTS);
    let mut relay =
        UdpRelay::new(limits, Budget { descriptors: Arc::clone(&core.descriptors), ephemeral_ports });
    relay.listen(listener, Door::Bound, &mut core).unwrap();
    let id = relay.state.frontends.ids()[0];

    let clients: Vec<UdpSocket> = (0..CLIENTS).map(|_| bind()).collect();
    for client in &clients {
        client.send_to(b"a question", frontend).unwrap();
    }
    relay.on_frontend(id, &mut core);
    // No batch is taken once there are enough.
    assert!((OPENED_PER_TURN..2 * OPENED_PER_TURN).contains(&relay.flows()), "{}", relay.flows());
    assert!(relay.has_ready(), "the rest is not forgotten");
    for _ in 0..CLIENTS {
        relay.run_ready(&mut core);
    }
    assert_eq!(relay.flows(), CLIENTS);
}
