//! What an endpoint's health is shared by: the numbers that the maps have for it, told to the table, so that workers
//! look at the programs' own words, and write there how connecting to it went. Nothing has to be carried to and fro.

use sluice_model::Protocol;
use sluice_socket_maps::{Kernel, Maps, PortKey};
use sluice_table::{ServicePort, SetName, SharedHealth};

use super::canonical;

/// Has the endpoints of a port, as they are now, go by the numbers that they have now. Datagrams prove nothing, and their
/// endpoints have none.
pub(super) fn share<K: Kernel>(port: &ServicePort, key: PortKey, maps: &Maps<K>, health: &SharedHealth) {
    if port.name().protocol != Protocol::Tcp {
        return;
    }
    port.share_health(health);
    let backends = port.backends();
    for (name, set) in [(SetName::Cluster, backends.cluster()), (SetName::Local, backends.local())] {
        // Both are in the order of addresses, each once.
        let mut numbers = maps.numbers(key, name).peekable();
        for upstream in set.upstreams() {
            let address = canonical(upstream.address());
            while numbers.next_if(|(number, _)| *number < address).is_some() {}
            let number = numbers.next_if(|(number, _)| *number == address);
            upstream.set_socket_number(name, number.map(|(_, number)| number));
        }
    }
}
