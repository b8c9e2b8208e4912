//! UDP: flows from clients to endpoints.

#[cfg_attr(not(test), expect(dead_code, reason = "the worker does not carry datagrams yet"))]
pub(crate) mod flow_table;

mod flow_queue;
#[cfg(test)]
mod flow_simulation;
