//! Who is at the other end of a connection, as the kernel says, and what he may do.
//!
//! Whoever may open the socket may look: its mode and group are for that. Changing, and seeing packets, takes an administrator: root, the user that we run as, or a member
//! of the administrators' group. Called on the connection's thread, once for each connection.

use std::ffi::CString;
use std::os::fd::AsFd;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::message::{Code, Failure, Order};

/// Who has connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub uid: u32,
    /// Whether he may change things and see packets.
    pub is_administrator: bool,
}

impl Caller {
    /// Asks the kernel.
    pub fn of(connection: impl AsFd, administrators: &str) -> std::io::Result<Caller> {
        let peer = rustix::net::sockopt::socket_peercred(connection)?;
        let (uid, gid) = (peer.uid.as_raw(), peer.gid.as_raw());
        let own = rustix::process::geteuid().as_raw();
        Ok(Caller {
            uid,
            is_administrator: uid == 0 || uid == own || is_member(uid, gid, administrators),
        })
    }

    /// Whether he may order that.
    pub fn may(&self, order: &Order) -> Result<(), Failure> {
        if self.is_administrator || !order.is_for_administrators() {
            return Ok(());
        }
        let said = match order.changes() {
            true => format!("user {} may look and not change anything", self.uid),
            false => format!("user {} may not see that", self.uid),
        };
        Err(Failure::new(Code::NotAllowed, said).hint(
            "run this as root, or become a member of the administrators' group (`admin_group` in [control])",
        ))
    }
}

/// Whether a user with this primary group is an administrator by his groups. Who cannot be found is none.
fn is_member(uid: u32, gid: u32, administrators: &str) -> bool {
    let Ok(Some(group)) = Group::from_name(administrators) else {
        return false;
    };
    if group.gid == Gid::from_raw(gid) {
        return true;
    }
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else {
        return false;
    };
    let Ok(name) = CString::new(user.name) else {
        return false;
    };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group.gid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn we_ourselves_may_do_anything() {
        let (here, _there) = UnixStream::pair().expect("a pair");
        let caller = Caller::of(&here, "").expect("the kernel knows");
        assert!(caller.is_administrator);
        assert_eq!(caller.may(&Order::Confirm), Ok(()));
    }

    #[test]
    fn others_may_look() {
        let nobody = Caller {
            uid: 65534,
            is_administrator: is_member(65534, 65534, "root"),
        };
        let refused = nobody.may(&Order::Confirm).expect_err("a change");
        assert_eq!(refused.code, Code::NotAllowed);
        let request = String::new();
        assert!(
            nobody.may(&Order::Observe { request }).is_err(),
            "packets are clear text"
        );
        assert_eq!(nobody.may(&Order::Plan { text: None }), Ok(()));
        let (remote, class) = (None, None);
        assert_eq!(nobody.may(&Order::Why { remote, class }), Ok(()));
        let decisions: Order = serde_json::from_str(r#"{"do":"decisions"}"#).expect("an order");
        let refused = nobody.may(&decisions).expect_err("not his business");
        assert!(refused.message.contains("may not see that"));
    }
}
