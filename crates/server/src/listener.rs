//! One HTTP listener for the control plane and for the ports of all sandboxes.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{Api, HttpState};
use crate::proxy::route::{self, Decision, Hosts};
use crate::proxy::{HardClose, Proxy};

/// Clients keep idle connections for up to 300 s, load balancers for 600; closing earlier than them
/// makes their next request fail. The same limit bounds the arrival of a request's head, which the
/// HTTP library does not tell apart from idling.
const KEEP_ALIVE: Duration = Duration::from_secs(630);
/// A client that connects and says nothing at all.
const FIRST_BYTE: Duration = Duration::from_secs(60);
/// How long requests under way may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(3);
/// Rest after a failed accept, which is nearly always a lack of file descriptors.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

/// Accepts connections until `shutdown`, then lets requests under way end, but not for long: streams
/// into sandboxes may be endless. Sandboxes are left alone.
pub async fn serve(listeners: Vec<TcpListener>, state: HttpState, shutdown: CancellationToken) {
    let server = Server::new(state);
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    let accepting = TaskTracker::new();
    for listener in listeners {
        let server = server.clone();
        let (connections, abort) = (connections.clone(), abort.clone());
        let shutdown = shutdown.clone();
        accepting.spawn(async move {
            while let Some(stream) = accept(&listener, &shutdown).await {
                let connection = server
                    .clone()
                    .connection(stream, shutdown.clone(), abort.clone());
                connections.spawn(connection);
            }
        });
    }
    accepting.close();
    accepting.wait().await;
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait())
        .await
        .is_err()
    {
        tracing::info!(
            connections = connections.len(),
            "cutting connections that are still busy"
        );
        abort.cancel();
        connections.wait().await;
    }
}

/// The next connection; `None` at shutdown. No error ends the listener.
async fn accept(listener: &TcpListener, shutdown: &CancellationToken) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => return Some(stream),
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again");
                tokio::time::sleep(ACCEPT_BACK_OFF).await;
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

#[derive(Clone)]
struct Server {
    api: Api,
    proxy: Proxy,
    hosts: Hosts,
}

impl Server {
    fn new(state: HttpState) -> Self {
        Self {
            hosts: Hosts::new(&state.domain, &state.extra_hosts),
            api: Api::new(state.clone()),
            proxy: Proxy::new(state),
        }
    }

    async fn connection(
        self,
        stream: TcpStream,
        shutdown: CancellationToken,
        abort: CancellationToken,
    ) {
        let speaks = tokio::time::timeout(FIRST_BYTE, stream.readable());
        tokio::select! {
            () = shutdown.cancelled() => return,
            spoke = speaks => if !matches!(spoke, Ok(Ok(()))) { return },
        }
        // Without it small writes of a stream wait for the other side's acknowledgements.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let hard_close = HardClose::default();
        let stream = ClientStream {
            stream,
            hard_close: hard_close.clone(),
        };
        let service = service_fn(move |request| {
            let server = self.clone();
            let hard_close = hard_close.clone();
            async move { Ok::<_, Infallible>(server.answer(request, hard_close).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(KEEP_ALIVE);
        builder.http2().timer(TokioTimer::new());
        let mut connection =
            pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = abort.cancelled() => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>, client: HardClose) -> Response<Body> {
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        match route::decide(method, uri, headers, &self.hosts) {
            Decision::Api => self.api.call(request.map(Body::new)).await,
            Decision::Sandbox(target) => self.proxy.to_sandbox(target, request, client).await,
            Decision::SignedFile(signed) => {
                self.proxy.to_signed_file(signed, request, client).await
            }
            Decision::Refuse(refusal) => Proxy::refuse(&refusal),
        }
    }
}

/// A client's connection that can be made to end by a reset.
struct ClientStream {
    stream: TcpStream,
    hard_close: HardClose,
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if self.hard_close.is_set() {
            // Fails only on a socket that is closed already.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
