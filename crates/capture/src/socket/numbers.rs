//! Tells others the endpoints' ids in the maps: the table, so that workers read the programs' record of an
//! endpoint's health and write the results of their own connection attempts to it, and the ledger. So nothing
//! has to be synchronised.

use sluice_model::Protocol;
use sluice_socket_maps::{Kernel, Maps, PortKey};
use sluice_table::{ServicePort, SetName, SharedHealth};

use super::{Ledger, canonical};

/// Tells table and ledger the current ids of a port's current endpoints.
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
        // Both are ordered by address, without duplicates.
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
