//! The numbers that the maps have for the endpoints of a service port, told to whoever goes by them: the table, so that
//! workers look at the programs' own words of an endpoint's health, and write there how connecting to it went; and the
//! ledger. Nothing has to be carried to and fro.

use sluice_model::Protocol;
use sluice_socket_maps::{Kernel, Maps, PortKey};
use sluice_table::{ServicePort, SetName, SharedHealth};

use super::{Ledger, canonical};

/// Has the endpoints of a port, as they are now, go by the numbers that they have now.
pub(super) fn share<K: Kernel>(
    port: &ServicePort,
    key: PortKey,
    maps: &Maps<K>,
    health: &SharedHealth,
    ledger: &Ledger,
) {
    // Datagrams prove nothing: their endpoints have no health.
    let is_tcp = port.name().protocol == Protocol::Tcp;
    if is_tcp {
        port.share_health(health);
    }
    let backends = port.backends();
    for (name, set) in [(SetName::Cluster, backends.cluster()), (SetName::Local, backends.local())] {
        // Both are in the order of addresses, each once.
        let mut numbers = maps.numbers(key, name).peekable();
        let numbered = set.upstreams().iter().filter_map(|upstream| {
            let address = canonical(upstream.address());
            while numbers.next_if(|(number, _)| *number < address).is_some() {}
            let number = numbers.next_if(|(number, _)| *number == address).map(|(_, number)| number);
            if is_tcp {
                upstream.set_socket_number(name, number);
            }
            number.map(|number| (number.id, upstream))
        });
        ledger.bind(is_tcp, numbered);
    }
}
