//! The program `sluice agent --capture tproxy` on a node of a lab: its restarts, what others do to its rules, and
//! how it gets on with their rules.
//!
//! Needs root, or a kernel that lets users have namespaces; fails where there is neither. Making a lab may start
//! this whole program anew, so nothing else is in it.

// All of it is test code, helpers too, where clippy does not see that by itself.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod local_routes;
mod manifests;
mod scene;

mod affinity;
mod apiserver;
mod at_sockets;
mod capture_listeners;
mod changes;
mod config;
mod crowding;
mod events;
mod firewalls;
mod handing_over;
mod health_checks;
mod hung_agents;
mod in_the_way;
mod inside;
mod leftovers;
mod local_detector;
mod monitoring;
mod no_sockets;
mod other_wishes;
mod own_apiserver;
mod pod_annotations;
mod recall;
mod repairs;
mod restarts;
mod service_types;
mod settings;
mod slow_nft;
mod sockets_stay;
mod succession;
mod two_agents;
mod wrong_use;
