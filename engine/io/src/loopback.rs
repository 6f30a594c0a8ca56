//! Two ports in memory, back to back: what one sends the other receives. For tests, benches and the simulator.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use patronus_mem::{Burst, FrameCache, PktBuf};

use crate::{Port, PortCounters, PortError};

/// One end of the pair. Packets move as they are: the same frames, with the outer addresses that they carry.
pub struct LoopbackPort {
    rx: Arc<ArrayQueue<PktBuf>>,
    tx: Arc<ArrayQueue<PktBuf>>,
    counters: Arc<PortCounters>,
}

impl LoopbackPort {
    /// Two connected ports with room for `capacity` packets (at least 1) in each direction.
    pub fn pair(capacity: usize) -> (LoopbackPort, LoopbackPort) {
        let there = Arc::new(ArrayQueue::new(capacity.max(1)));
        let back = Arc::new(ArrayQueue::new(capacity.max(1)));
        let end = |rx: &Arc<_>, tx: &Arc<_>| LoopbackPort {
            rx: Arc::clone(rx),
            tx: Arc::clone(tx),
            counters: Arc::default(),
        };
        (end(&back, &there), end(&there, &back))
    }
}

impl Port for LoopbackPort {
    fn rx_burst(&mut self, _frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let (mut packets, mut bytes) = (0, 0);
        while burst.room() > 0
            && let Some(pkt) = self.rx.pop()
        {
            bytes += pkt.len() as u64;
            burst.push(pkt);
            packets += 1;
        }
        if packets > 0 {
            self.counters.rx_calls.add(1);
            self.counters.rx_packets.add(packets as u64);
            self.counters.rx_bytes.add(bytes);
        }
        Ok(packets)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        let (mut packets, mut bytes) = (0, 0);
        for pkt in burst.drain(..) {
            let len = pkt.len() as u64;
            match self.tx.push(pkt) {
                Ok(()) => {
                    packets += 1;
                    bytes += len;
                }
                Err(pkt) => {
                    self.counters.tx_no_buffer.add(1);
                    frames.free(pkt);
                }
            }
        }
        if packets > 0 {
            self.counters.tx_calls.add(1);
            self.counters.tx_packets.add(packets);
            self.counters.tx_bytes.add(bytes);
        }
        Ok(())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}
