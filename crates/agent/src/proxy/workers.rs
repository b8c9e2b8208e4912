//! The data plane's sockets, in the form that bind mode needs.

use std::io;
use std::sync::Arc;

use sluice_capture::bind::Listeners;
use sluice_dataplane::Dataplane;
use sluice_model::Frontend;
use sluice_table::{FrontendKey, Table};

use crate::events::Events;

/// The data plane's sockets, in the form that bind mode needs.
pub(super) struct Workers {
    pub(super) dataplane: Arc<Dataplane>,
    pub(super) table: Table,
    pub(super) events: Events,
}

impl Listeners for Workers {
    fn open(&self, frontend: Frontend) -> io::Result<()> {
        self.dataplane.open(frontend).inspect_err(|error| {
            let key = FrontendKey::new(frontend.address.ip(), frontend.address.port(), frontend.protocol);
            if let Some(route) = self.table.reader().lookup(key) {
                let note = format!("cannot listen on {frontend}: {error}");
                let service = &route.service_port().name().service;
                self.events.warn(service, "FailedToServeFrontend", "Listen", note);
            }
        })
    }

    fn close(&self, frontend: Frontend) {
        self.dataplane.close(frontend);
    }
}
