//! What a proxy does when its agent is replaced by another, returns, or serves beside one that hangs.

use std::time::Instant;

use tracing::info;

use super::Proxy;

impl Proxy {
    /// Leaves connections to the agent that has replaced this one, and takes them back if that one ends.
    pub(super) fn follow_tenure(&mut self) {
        let (Some(tenure), Some(listeners)) = (&self.tenure, &mut self.listeners) else { return };
        let was_replaced = std::mem::replace(&mut self.is_replaced, tenure.is_replaced());
        let has_returned = std::mem::replace(&mut self.returns, tenure.returns()) != self.returns;
        match (was_replaced, self.is_replaced) {
            (false, true) => {
                listeners.close(&self.dataplane);
                tenure.release();
                info!("another agent takes new connections; those of this one go on");
            }
            (true, false) => {
                self.at_socket.take_back();
                info!("the other agent has ended: this one takes new connections again");
            }
            // This agent hung while another one served, which has destroyed these sockets.
            (false, false) if has_returned => listeners.close(&self.dataplane),
            _ => {}
        }
        if let Some(ports) = tenure.take_wanted_ports() {
            tenure.answer(listeners.move_to(ports, &self.dataplane));
        }
        if self.is_replaced {
            self.at_socket.hand_over(Instant::now());
        }
    }
}
