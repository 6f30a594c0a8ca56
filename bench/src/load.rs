//! Traffic: the same generators and sinks for every subject. Sockets are opened inside the namespaces; the threads that
//! drive them are ours.

pub mod echo;
pub mod source;
pub mod tcp;
pub mod udp;
