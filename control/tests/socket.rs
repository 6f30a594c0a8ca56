//! The control socket: what clients get and what they cannot do to others.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use patronus_control::client::Client;
use patronus_control::frame;
use patronus_control::message::{Answer, Code, Failure, Order, Topic};
use patronus_control::server::{self, ADMINISTRATORS_MORE, CLIENTS_MAX, Handler};
use serde_json::{Value, json};

/// Says what it was told.
struct Echo;

impl Handler for Echo {
    fn administrators(&self) -> String {
        String::new()
    }

    fn handle(&self, order: Order) -> Result<Value, Failure> {
        match order {
            Order::Confirm => Err(Failure::new(Code::NothingPending, "nothing").hint("nothing to do")),
            order => Ok(json!(format!("{order:?}"))),
        }
    }

    fn observe(&self, request: &str) -> Result<OwnedFd, Failure> {
        let (mut here, there) = UnixStream::pair().expect("a pair");
        here.write_all(request.as_bytes()).expect("room");
        Ok(there.into())
    }
}

/// A socket in a folder of its own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("patronus-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a folder");
        Folder(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    fn serve(&self) {
        let listener = server::bind(&self.socket(), "").expect("a socket");
        server::serve(listener, Arc::new(Echo)).expect("a thread");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn answer(stream: &mut UnixStream) -> Answer {
    let text = frame::read(stream).expect("a frame").expect("an answer");
    serde_json::from_slice(&text).expect("an answer")
}

#[test]
fn orders_are_answered_one_after_the_other() {
    let folder = Folder::new("orders");
    folder.serve();
    let mode = std::fs::metadata(folder.socket())
        .expect("made above")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut client = Client::connect(&folder.socket()).expect("a connection");
    assert_eq!(client.pid(), Ok(std::process::id() as i32));
    let shown = client.ask(Order::Show { what: Topic::Peers }).expect("an answer");
    assert_eq!(shown, json!("Show { what: Peers }"));
    let failure = client.ask(Order::Confirm).expect_err("a failure");
    assert_eq!(failure.code, Code::NothingPending);
    assert_eq!(failure.hint.as_deref(), Some("nothing to do"));
}

#[test]
fn a_descriptor_comes_along_with_its_answer() {
    let folder = Folder::new("descriptor");
    folder.serve();
    let mut client = Client::connect(&folder.socket()).expect("a connection");
    for request in ["observe=trace", "observe=capture"] {
        let descriptor = client.observe(request.to_owned()).expect("a descriptor");
        let mut said = String::new();
        let mut there = UnixStream::from(descriptor);
        there.read_to_string(&mut said).expect("its other end is closed");
        assert_eq!(said, request);
        client.ask(Order::Rollback).expect("the connection goes on");
    }
}

#[test]
fn what_is_no_request_is_refused_and_the_connection_goes_on() {
    let folder = Folder::new("refused");
    folder.serve();
    let mut stream = UnixStream::connect(folder.socket()).expect("a connection");
    for (text, id) in [("{}", 0), ("\u{0}", 0), (r#"{"v":2,"id":9,"do":"confirm"}"#, 9)] {
        frame::write(&mut stream, text.as_bytes()).expect("sent");
        let answer = answer(&mut stream);
        assert_eq!(answer.id, id);
        assert_eq!(answer.error.expect("an error").code, Code::BadRequest);
    }
    frame::write(&mut stream, br#"{"v":1,"id":3,"do":"rollback"}"#).expect("sent");
    assert_eq!(answer(&mut stream).ok, Some(json!("Rollback")));
}

#[test]
fn a_frame_that_is_too_long_ends_the_connection() {
    let folder = Folder::new("long");
    folder.serve();
    let mut stream = UnixStream::connect(folder.socket()).expect("a connection");
    stream.write_all(&u32::MAX.to_be_bytes()).expect("sent");
    assert_eq!(stream.read(&mut [0; 1]).expect("the end"), 0);
}

#[test]
fn one_connection_too_many_is_told_so_and_the_others_go_on() {
    let folder = Folder::new("many");
    folder.serve();
    let mut first = Client::connect(&folder.socket()).expect("a connection");
    first.ask(Order::Rollback).expect("an answer");
    let mut others: Vec<Client> = (1..CLIENTS_MAX + ADMINISTRATORS_MORE)
        .map(|_| {
            let mut client = Client::connect(&folder.socket()).expect("a connection");
            client.ask(Order::Rollback).expect("an answer");
            client
        })
        .collect();
    let mut late = UnixStream::connect(folder.socket()).expect("a connection");
    assert_eq!(answer(&mut late).error.expect("an error").code, Code::Busy);
    first.ask(Order::Rollback).expect("an answer");
    others[0].ask(Order::Rollback).expect("an answer");
}

#[test]
fn a_socket_in_use_is_not_replaced_and_one_that_was_left_behind_is() {
    let folder = Folder::new("left");
    let listener = server::bind(&folder.socket(), "").expect("a socket");
    let error = server::bind(&folder.socket(), "").expect_err("in use");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    drop(listener);
    assert!(folder.socket().exists(), "it is left behind");
    server::bind(&folder.socket(), "").expect("a socket");
    std::fs::remove_file(folder.socket()).expect("there");
    std::fs::write(folder.socket(), "somebody's").expect("a file");
    server::bind(&folder.socket(), "").expect_err("not a socket");
    assert_eq!(std::fs::read(folder.socket()).expect("there"), b"somebody's");
}
