//! As much of HTTP/1.1 as a server of one JSON endpoint needs, by hand: a library would not send what is wrong.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::schedule::Fault;
use super::spoil::spoil;

/// A connection that can be reset.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes dropping it send a reset, whatever was written before.
    fn reset_on_drop(&self) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn reset_on_drop(&self) -> io::Result<()> {
        self.set_zero_linger()
    }
}

impl Socket for TlsStream<TcpStream> {
    fn reset_on_drop(&self) -> io::Result<()> {
        self.get_ref().0.set_zero_linger()
    }
}

/// A request that was read whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Incoming {
    pub(super) method: String,
    pub(super) path: String,
    /// The head as it came, request line included.
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

/// Reads the next request of a connection; `None` where the client closed it. `rest` is what was read beyond the last.
pub(super) async fn read_request(
    socket: &mut impl Socket,
    rest: &mut Vec<u8>,
) -> io::Result<Option<Incoming>> {
    let head_end = loop {
        if let Some(at) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if socket.read_buf(rest).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&rest[..head_end]).into_owned();
    let length: usize = header(&head, "content-length")
        .and_then(|value| value.parse().ok())
        .unwrap_or(0);
    while rest.len() < head_end + length {
        if socket.read_buf(rest).await? == 0 {
            return Ok(None);
        }
    }
    let body = rest[head_end..head_end + length].to_vec();
    rest.drain(..head_end + length);
    let mut line = head.split(' ').map(str::to_owned);
    let (method, path) = (line.next(), line.next());
    Ok(Some(Incoming {
        method: method.unwrap_or_default(),
        path: path.unwrap_or_default(),
        head,
        body,
    }))
}

/// A header's value.
pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// An answer before it is written, or spoiled.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

impl Outgoing {
    pub(super) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self {
            status,
            headers: vec![("content-type", "application/json".to_owned())],
            body: body.to_string(),
        }
    }

    pub(super) fn html(status: u16, text: &str) -> Self {
        Self {
            status,
            headers: vec![("content-type", "text/html".to_owned())],
            body: format!("<!DOCTYPE html><html><body><h1>{text}</h1></body></html>"),
        }
    }

    /// A file of a picture.
    pub(super) fn picture(file: String) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type", "image/gif".to_owned())],
            body: file,
        }
    }

    /// The answer with the fault in it, where it is one of what is said.
    pub(super) fn or_spoiled(self, fault: Option<Fault>) -> Self {
        fault.and_then(|fault| spoil(fault, &self)).unwrap_or(self)
    }

    #[must_use]
    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Head and body, which is said to be `missing` bytes longer than it is.
    pub(super) fn bytes(&self, missing: usize) -> (Vec<u8>, Vec<u8>) {
        let mut head = format!(
            "HTTP/1.1 {} Status\r\ncontent-length: {}\r\n",
            self.status,
            self.body.len() + missing
        );
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head.push_str("\r\n");
        (head.into_bytes(), self.body.clone().into_bytes())
    }
}
