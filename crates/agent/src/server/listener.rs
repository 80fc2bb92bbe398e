//! Accepts connections and serves HTTP/1.1 on them.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};

use super::{Body, Connections, Hangup};

/// How long sent bytes may stay unacknowledged before the peer counts as dead.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept; file descriptors may run out for a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What answers the requests of a listener.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    /// Answers one request. `hangup` cuts the connection it came on.
    fn handle(
        &self,
        request: Request<Incoming>,
        hangup: Arc<Hangup>,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// The connections of this listener.
    fn connections(&self) -> &Connections;

    /// The only peer that is served; `None` for everyone.
    fn peer(&self) -> Option<IpAddr>;
}

/// Serves a listener for ever.
///
/// There is no idle timeout: the only peer is the edge in front, which closes what it does not
/// need, and a timer per connection would wake up an idle sandbox.
pub(crate) async fn serve<H: Handler>(listener: TcpListener, handler: H) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if handler.peer().is_none_or(|only| only == peer.ip()) => {
                // Owned by itself: it ends with its socket, or when its hangup is pulled.
                tokio::spawn(connection(stream, handler.clone()));
            }
            Ok((stream, _)) => reset(&stream),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn connection<H: Handler>(stream: TcpStream, handler: H) {
    if tune(&stream).is_err() {
        return;
    }
    let registration = handler.connections().register();
    let hangup = &registration.hangup;
    let service = service_fn(|request| {
        let answer = handler.handle(request, Arc::clone(hangup));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    // How a connection ends is the client's business: there is nobody to tell.
    tokio::select! {
        _ended = connection.as_mut() => {}
        () = hangup.requested() => {}
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Best effort: not every network stack knows the option.
    let milliseconds = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    let _unsupported = sockopt::set_tcp_user_timeout(stream, milliseconds);
    Ok(())
}

/// Closes without the goodbye that would wait for a peer.
fn reset(stream: &TcpStream) {
    let _best_effort = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}
