//! More connections than wait in the queue of a listener by default.

use socket2::SockRef;

use super::*;

#[test]
fn a_crowd_is_served_in_turn_and_who_leaves_is_let_go() {
    on_every_backend(Limits::default(), |server| {
        let mut crowd: Vec<Client> = (0..1_500).map(|_| server.connect()).collect();
        for path in ["/a", "/now", "/b"] {
            crowd.iter_mut().for_each(|client| client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")));
            crowd.iter_mut().for_each(|client| assert_eq!(client.answer().text(), path));
        }
        let client = &mut crowd[0];
        client.send("GET /c HTTP/1.1\r\nHost: x\r\n\r\nPOST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.answer().text(), "/c");
        client.send("hello");
        assert_eq!(client.answer().text(), "hello");
        client.send("nonsense\r\n\r\n");
        assert_eq!(client.answer().status, 400);
        // Half of them are reset while their answers are under way.
        for client in &mut crowd[750..] {
            client.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
            SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("linger");
        }
        crowd.truncate(750);
        server.await_open(749);
        drop(crowd);
        server.await_open(0);
    });
}
