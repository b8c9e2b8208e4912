//! Frontends: the wanted value of each, and writing them for the programs.

use std::collections::HashSet;

use sluice_table::AtSocket;

use super::sets::{SetState, index};
use super::{Full, Maps, Port, PortKey, PortState, SETS};
use crate::affinity::SetAffinity;
use crate::kernel::Kernel;
use crate::layout::{FrontendKey, FrontendValue, Outcome, verdict};

#[derive(Debug)]
pub(super) struct Placed {
    pub(super) value: FrontendValue,
    /// The port that owns it; `None` if it is an earlier agent's and was not claimed yet.
    pub(super) owner: Option<PortKey>,
}

impl<K: Kernel> Maps<K> {
    /// Updates frontends from outcomes and sets.
    pub(super) fn place_frontends(
        &mut self,
        key: PortKey,
        state: &mut PortState,
        port: &Port,
        is_last_resort: bool,
    ) -> Result<(), Full> {
        let mut result = Ok(());
        let before = std::mem::take(&mut state.frontends);
        let mut now = Vec::with_capacity(port.frontends.len());
        for (frontend, outcomes) in &port.frontends {
            let frontend = FrontendKey::from(*frontend);
            let [node, pod] = [outcomes.node, outcomes.pod].map(|outcome| outcome_of(outcome, &state.sets));
            if node.verdict == verdict::RELAY && pod.verdict == verdict::RELAY {
                continue;
            }
            let value = FrontendValue { node, pod, service: state.service };
            let is_full = self.placed.len() >= self.kernel.capacity().frontends as usize;
            if is_full && !self.placed.contains_key(&frontend) {
                result = Err(Full::Others);
                if is_last_resort {
                    continue;
                }
                now.extend(before);
                state.frontends = now;
                return result;
            }
            now.push(frontend);
            let is_so = |placed: &mut Placed| {
                placed.owner = Some(key);
                std::mem::replace(&mut placed.value, value) == value
            };
            let is_so = match self.placed.get_mut(&frontend) {
                Some(placed) => is_so(placed),
                None => {
                    self.placed.insert(frontend, Placed { value, owner: Some(key) });
                    false
                }
            };
            if !is_so {
                self.touched.insert(frontend);
            }
        }
        // Mostly there are none, or the same ones.
        if !before.is_empty() && before != now {
            let stay: HashSet<&FrontendKey> = now.iter().collect();
            for frontend in before.iter().filter(|frontend| !stay.contains(frontend)) {
                if self.placed.get(frontend).is_some_and(|placed| placed.owner == Some(key)) {
                    self.placed.remove(frontend);
                    self.touched.insert(*frontend);
                }
            }
        }
        state.frontends = now;
        result
    }

    /// Writes changed frontends. Only afterwards is what they named before unused.
    pub(super) fn flush(&mut self) {
        let (mut put, mut remove) = (Vec::new(), Vec::new());
        for key in self.touched.drain() {
            match self.placed.get(&key) {
                Some(placed) => put.push((key, placed.value)),
                None => remove.push(key),
            }
        }
        // Removals first, because they make room.
        let mut is_left = false;
        if !remove.is_empty() && self.kernel.remove_frontends(&remove).is_err() {
            self.touched.extend(remove.drain(..));
            is_left = true;
        }
        if !put.is_empty() && self.kernel.put_frontends(&put).is_err() {
            self.failures += 1;
            // Some may still have their old values. It is better to have none until it is tried again.
            let keys: Vec<FrontendKey> = put.iter().map(|(key, _)| *key).collect();
            is_left |= self.kernel.remove_frontends(&keys).is_err();
            self.touched.extend(keys);
        }
        if is_left {
            self.failures += 1;
            return;
        }
        self.has_room |= !self.dropped.is_empty() || !remove.is_empty();
        let left = self.dropped.endpoints.clone();
        self.leave(left);
        // Room for session affinity is scarcer than room for sets, so it is freed without waiting for a
        // barrier.
        for id in &self.dropped.sets {
            self.kernel.write_affinity(*id, SetAffinity::default());
        }
        self.retired.append(&mut self.dropped);
        self.renew_flowing();
    }
}

/// An outcome with the id of its set; without a set, nothing is translated.
fn outcome_of(outcome: AtSocket, sets: &[Option<SetState>; SETS]) -> Outcome {
    let set = match outcome {
        AtSocket::Balance(name) => sets[index(name)].as_ref(),
        AtSocket::Relay | AtSocket::Refuse => None,
    };
    let (set, verdict) = match (outcome, set) {
        (AtSocket::Refuse, _) => (0, verdict::REFUSE),
        (AtSocket::Balance(_), Some(set)) => (set.id, verdict::BALANCE),
        _ => (0, verdict::RELAY),
    };
    Outcome { set, verdict }
}
