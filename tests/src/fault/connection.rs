//! Takes connections and writes answers, each in its fault's manner.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::schedule::Fault;
use super::server::{Shared, Turn};
use super::spoil::TOO_LARGE;
use super::wire::{Outgoing, Socket, read_request};

/// Time between two pieces of a slow body.
const DRIP: Duration = Duration::from_millis(4);

pub(super) async fn listen(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.connected();
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        // A connection that breaks off is what clients are tested with; the log says what was completed.
        tokio::spawn(async move { talk(stream, tls, &shared).await });
    }
}

async fn talk(stream: TcpStream, tls: Option<TlsAcceptor>, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match tls {
        None => serve(stream, shared).await,
        Some(acceptor) => serve(acceptor.accept(stream).await?, shared).await,
    }
}

async fn serve(mut socket: impl Socket, shared: &Shared) -> io::Result<()> {
    let mut rest = Vec::new();
    while let Some(incoming) = read_request(&mut socket, &mut rest).await? {
        let Turn {
            place,
            fault,
            answer,
        } = shared.turn(incoming);
        tokio::time::sleep(shared.latency).await;
        let written = write(&mut socket, &answer, fault).await;
        if let Some(place) = place {
            shared.complete(place, matches!(written, Ok(true)));
        }
        if !written? {
            return Ok(());
        }
    }
    Ok(())
}

/// Writes an answer in the fault's manner; `false` where the client did not get all of it, and the connection is over.
async fn write(
    socket: &mut impl Socket,
    answer: &Outgoing,
    fault: Option<Fault>,
) -> io::Result<bool> {
    let missing = if fault == Some(Fault::TruncatedBody) {
        100
    } else {
        0
    };
    let (head, body) = answer.bytes(missing);
    let is_whole = match fault {
        Some(Fault::ResetBeforeHeaders) => {
            socket.reset_on_drop()?;
            false
        }
        Some(Fault::ResetInHeaders) => {
            socket.write_all(&head[..head.len() / 2]).await?;
            socket.flush().await?;
            socket.reset_on_drop()?;
            false
        }
        Some(Fault::ResetInBody) => {
            socket.write_all(&head).await?;
            socket.write_all(&body[..body.len() / 2]).await?;
            socket.flush().await?;
            socket.reset_on_drop()?;
            false
        }
        Some(Fault::TruncatedBody) => {
            socket.write_all(&head).await?;
            socket.write_all(&body).await?;
            socket.shutdown().await?;
            false
        }
        Some(Fault::Hang) => {
            socket.write_all(&head).await?;
            socket.flush().await?;
            std::future::pending::<()>().await;
            false
        }
        Some(Fault::SlowBody) => {
            socket.write_all(&head).await?;
            for piece in body.chunks(body.len().div_ceil(8).max(1)) {
                tokio::time::sleep(DRIP).await;
                socket.write_all(piece).await?;
                socket.flush().await?;
            }
            true
        }
        Some(Fault::TooLargeInChunks) => {
            write_chunks(socket).await?;
            false
        }
        Some(Fault::Latency(wait)) => {
            tokio::time::sleep(wait).await;
            write_whole(socket, &head, &body).await?
        }
        _ => write_whole(socket, &head, &body).await?,
    };
    Ok(is_whole)
}

async fn write_whole(socket: &mut impl Socket, head: &[u8], body: &[u8]) -> io::Result<bool> {
    // In one piece: a client must not see the head alone and take the rest for late.
    socket.write_all(&[head, body].concat()).await?;
    socket.flush().await?;
    Ok(true)
}

async fn write_chunks(socket: &mut impl Socket) -> io::Result<()> {
    socket
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        .await?;
    let chunk = [
        format!("{:x}\r\n", 1 << 16).into_bytes(),
        vec![b' '; 1 << 16],
        b"\r\n".to_vec(),
    ]
    .concat();
    for _ in 0..=TOO_LARGE / (1 << 16) {
        socket.write_all(&chunk).await?;
    }
    socket.write_all(b"0\r\n\r\n").await?;
    socket.shutdown().await
}
