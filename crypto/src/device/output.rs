//! What a device asks for. Carried out by the engine's slow path, which passes on what is a worker's.

use arrayvec::ArrayVec;

use crate::PeerId;
use crate::keypair::Keypair;
use crate::messages::INITIATION_LEN;

/// Where a handshake message goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// To the peer's endpoint, as the engine knows it.
    Peer(PeerId),
    /// Back to where the datagram came from that was given to [`Device::receive`](crate::Device::receive) just now.
    Source,
}

/// One thing to do. They are to be done in their order.
pub enum Output {
    /// Send a message.
    Send {
        /// Where to.
        to: To,
        /// The whole UDP payload.
        msg: ArrayVec<u8, INITIATION_LEN>,
        /// An initiation or response: its packet gets the DSCP of handshakes (AF41). A cookie reply does not.
        handshake: bool,
    },
    /// The message just received was authentic: its source is the peer's endpoint now.
    MoveEndpoint {
        /// Whose endpoint.
        peer: PeerId,
    },
    /// A handshake is complete: the worker takes the session in. If we initiated it, the worker then sends what is staged, or
    /// an empty keepalive if nothing is, because the peer may not send before it has received something.
    Install {
        /// Whose session.
        peer: PeerId,
        /// The session. It has to come back through [`Device::retire`](crate::Device::retire) some day.
        keypair: Box<Keypair>,
    },
    /// The worker sends an empty packet; if it finds no session to send it in, it calls
    /// [`Device::want_handshake`](crate::Device::want_handshake), as for any packet.
    Keepalive {
        /// To whom.
        peer: PeerId,
    },
    /// Forget which of our addresses packets to the peer are sent from: the path may have changed.
    ClearSource {
        /// Whose endpoint.
        peer: PeerId,
    },
    /// The peer is under load and sent a cookie. It is good for the address that our initiation came from: the next one has to come from there.
    Challenged {
        /// By whom.
        peer: PeerId,
    },
    /// The handshake was given up: packets that wait for a session are dropped.
    DropStaged {
        /// Whose packets.
        peer: PeerId,
    },
    /// The worker gives back every session of the peer.
    EraseKeys {
        /// Whose sessions.
        peer: PeerId,
    },
    /// The worker sends nothing more under the sessions it has of this peer: our private key changed.
    ExpireSending {
        /// Whose sessions.
        peer: PeerId,
    },
    /// The peer was removed because its key is our own.
    PeerGone {
        /// Which peer it was.
        peer: PeerId,
    },
}

/// A list of what to do, to be emptied after every call and used again.
#[derive(Default)]
pub struct Outputs(Vec<Output>);

impl Outputs {
    /// An empty list with room for what one call normally asks for.
    pub fn new() -> Outputs {
        Outputs(Vec::with_capacity(256))
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.0.push(output);
    }

    /// Takes everything out, in the order in which it is to be done.
    pub fn drain(&mut self) -> impl Iterator<Item = Output> + '_ {
        self.0.drain(..)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many things there are to do.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_counted_until_they_are_taken() {
        let mut outputs = Outputs::new();
        assert!(outputs.is_empty());
        for n in 1..=2 {
            outputs.push(Output::Keepalive { peer: PeerId(0) });
            assert_eq!((outputs.len(), outputs.is_empty()), (n, false));
        }
        assert_eq!(outputs.drain().count(), 2);
        assert!(outputs.is_empty());
    }
}
