//! What plain HTTP clients meet, without an SDK between.

use crate::support::Server;

#[test]
fn wrong_requests_are_refused_in_the_form_that_clients_read() {
    let server = Server::start("");
    server.run("rest.py", &[]);
    server.assert_nothing_left();
}

#[test]
fn ports_inside_are_reached_and_cut_when_the_sandbox_goes_away() {
    let server = Server::start("");
    server.run("edge.py", &[]);
    server.assert_nothing_left();
}
