//! Frontends that are taken out of pinned maps, past whoever holds these.

use sluice_socket::forget_frontends;
use sluice_socket_maps::protocol;

use crate::life::{at, is_translated};
use crate::node::{Node, key, remove_pinned, serve, service};

#[test]
fn a_frontend_is_forgotten_whether_or_not_an_agent_holds_it() {
    let node = Node::new();
    let mut kernel = node.attach().unwrap();
    let [first, second] = [1, 2].map(|number| service(false, number, 53));
    let pins = &node.config.pins;
    for (id, to) in [(1, first), (2, second)] {
        serve(&mut kernel, id, to, &at(3));
    }
    assert_eq!(forget_frontends(pins, &[key(first, protocol::UDP)]).unwrap(), 1);
    assert!(!is_translated(&node, first) && is_translated(&node, second));
    drop(kernel);
    let both = [first, second].map(|to| key(to, protocol::UDP));
    assert_eq!(forget_frontends(pins, &both).unwrap(), 1, "one of them is known still");
    assert!(!is_translated(&node, second));
    let left = node.attach().unwrap().frontends().unwrap();
    assert_eq!(left.len(), 2, "those of TCP: {left:?}");
    assert!(remove_pinned(pins));
    assert_eq!(forget_frontends(pins, &both).unwrap(), 0, "nothing is pinned");
}
