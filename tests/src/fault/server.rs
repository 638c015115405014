//! The server: takes connections, answers as the schedule says, keeps the log.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use super::answers::{Poison, Question};
use super::certificate::{Authority, Identity};
use super::schedule::{Fault, LASTING, LimitHeader, Schedule};
use super::wire::{Incoming, Outgoing, Socket, read_request};

/// Time between two pieces of a slow body.
const DRIP: Duration = Duration::from_millis(4);
/// Bytes of a body that is too large: clients are configured to take 1 MiB.
const TOO_LARGE: usize = (1 << 20) + 1;

/// One request that the server read whole, and what became of it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The texts asked about.
    pub texts: Vec<String>,
    /// The seed, where one was sent.
    pub seed: Option<u64>,
    /// What went wrong on the schedule's or the text's account.
    pub fault: Option<Fault>,
    /// For each text, whether it was answered well; all `false` unless the answer is completed.
    pub good: Vec<bool>,
    /// Tokens that the server bills, also where the answer did not arrive.
    pub tokens: u64,
    /// When the last byte of the answer was handed to the socket.
    pub completed_at: Option<Instant>,
    /// The head of the request.
    pub head: String,
    /// How many clients had died when its connection was made: see [`FaultServer::client_died`].
    pub num_deaths: usize,
}

/// A running server; it stops when this is dropped.
#[derive(Debug)]
pub struct FaultServer {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    // Dropped last: ends the server's tasks.
    _runtime: Runtime,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    latency: Duration,
}

#[derive(Debug, Default)]
struct State {
    schedule: Schedule,
    log: Vec<Sent>,
    /// How often each body came.
    repeats: HashMap<Vec<u8>, u64>,
    num_connections: u64,
    repeats_headers: bool,
    /// From the request of this number on every one earns this fault.
    end_of_account: Option<(usize, Fault)>,
    is_stalled: bool,
    num_stalled: usize,
    num_deaths: usize,
}

impl FaultServer {
    /// Starts a server that takes `latency` for each answer.
    ///
    /// # Errors
    /// The operating system's, where no socket can be had.
    pub fn start(schedule: Schedule, latency: Duration) -> io::Result<Self> {
        Self::start_with(schedule, latency, None)
    }

    /// Starts a server that speaks TLS.
    ///
    /// # Errors
    /// As [`start`](Self::start), and where no key can be made.
    pub fn start_tls(authority: &Authority, identity: Identity) -> io::Result<Self> {
        let acceptor = authority.acceptor(identity).map_err(io::Error::other)?;
        Self::start_with(Schedule::CALM, Duration::ZERO, Some(acceptor))
    }

    fn start_with(
        schedule: Schedule,
        latency: Duration,
        tls: Option<TlsAcceptor>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let state = State {
            schedule,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            latency,
        });
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        runtime.spawn(listen(listener, tls, Arc::clone(&shared)));
        Ok(Self {
            address,
            scheme,
            shared,
            _runtime: runtime,
        })
    }

    /// Base address for a configuration.
    pub fn url(&self) -> String {
        format!("{}://localhost:{}/v1", self.scheme, self.address.port())
    }

    /// From now on this goes wrong.
    pub fn set_schedule(&self, schedule: Schedule) {
        self.shared.state().schedule = schedule;
    }

    /// From now on errors repeat the headers of the request, key included, as badly written servers do.
    pub fn repeat_headers(&self) {
        self.shared.state().repeats_headers = true;
    }

    /// From the request of this number on, counted from 0, every one earns `fault`.
    pub fn end_account_after(&self, number: usize, fault: Fault) {
        self.shared.state().end_of_account = Some((number, fault));
    }

    /// Whether requests are taken and never answered from now on. What was taken before is answered.
    pub fn stall(&self, is_stalled: bool) {
        self.shared.state().is_stalled = is_stalled;
    }

    /// Requests that were taken and are never answered.
    pub fn num_stalled(&self) -> usize {
        self.shared.state().num_stalled
    }

    /// The client was killed: connections from now on are another one's.
    pub fn client_died(&self) {
        self.shared.state().num_deaths += 1;
    }

    /// Every request so far that was read whole, in order.
    pub fn log(&self) -> Vec<Sent> {
        self.shared.state().log.clone()
    }

    /// How many there are.
    pub fn num_requests(&self) -> usize {
        self.shared.state().log.len()
    }

    /// Connections that were taken, TLS or not.
    pub fn num_connections(&self) -> u64 {
        self.shared.state().num_connections
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a request into the log; its place there, what goes wrong with it, and the answer.
    fn enter(
        &self,
        incoming: Incoming,
        question: &Question,
        num_deaths: usize,
    ) -> (usize, Option<Fault>, Outgoing) {
        let mut state = self.state();
        let arrival = state.log.len() as u64;
        let repeat = state.repeats.entry(incoming.body.clone()).or_default();
        *repeat += 1;
        let repeat = *repeat;
        let fault = match question.poison() {
            Some(Poison::Lasting(place)) => Some(LASTING[place]),
            _ if state.is_stalled => {
                state.num_stalled += 1;
                Some(Fault::Hang)
            }
            _ if state
                .end_of_account
                .is_some_and(|(number, _)| arrival >= number as u64) =>
            {
                state.end_of_account.map(|(_, fault)| fault)
            }
            _ => state.schedule.fault(&incoming.body, repeat, arrival),
        };
        let repeated = state.repeats_headers.then(|| incoming.head.clone());
        let (mut answer, mut good) = question.answer();
        if fault == Some(Fault::OutOfOrder) && answer.status == 200 {
            reorder(&mut answer.body);
        }
        if let Some(spoiled) = fault.and_then(|fault| spoil(fault, &answer)) {
            answer = spoiled;
            good.fill(false);
        }
        if let Some(head) = repeated.filter(|_| answer.status >= 300 || good.contains(&false)) {
            answer = repeat_headers(answer, &head);
        }
        // A server that fails before it has understood the question bills nothing for it.
        let is_billed = answer.status == 200;
        state.log.push(Sent {
            texts: question.texts.clone(),
            seed: question.seed,
            fault,
            good,
            tokens: if is_billed { question.tokens() } else { 0 },
            completed_at: None,
            head: incoming.head,
            num_deaths,
        });
        (arrival as usize, fault, answer)
    }

    fn complete(&self, place: usize, is_whole: bool) {
        let mut state = self.state();
        let sent = &mut state.log[place];
        if is_whole {
            sent.completed_at = Some(Instant::now());
        } else {
            sent.good.fill(false);
        }
    }
}

async fn listen(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.state().num_connections += 1;
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
    let num_deaths = shared.state().num_deaths;
    let mut rest = Vec::new();
    while let Some(incoming) = read_request(&mut socket, &mut rest).await? {
        let Some(question) = Question::read(&incoming.path, &incoming.body) else {
            let unknown = Outgoing::json(404, &json!({"error": {"message": "no such endpoint"}}));
            write(&mut socket, &unknown, None).await?;
            continue;
        };
        let (place, fault, answer) = shared.enter(incoming, &question, num_deaths);
        tokio::time::sleep(shared.latency).await;
        let written = write(&mut socket, &answer, fault).await;
        shared.complete(place, matches!(written, Ok(true)));
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

/// The answer in its place where a fault is in what is said, not in how.
fn spoil(fault: Fault, good: &Outgoing) -> Option<Outgoing> {
    let error = |status, code: &str, message: &str| {
        Outgoing::json(
            status,
            &json!({"error": {"message": message, "type": code, "code": code}}),
        )
    };
    let with_body = |body: String| Outgoing {
        body,
        ..good.clone()
    };
    Some(match fault {
        Fault::BrokenJson if good.status == 200 => {
            with_body(good.body[..good.body.len() * 2 / 3].to_owned())
        }
        Fault::Html200 => Outgoing::html(200, "Welcome"),
        Fault::Html502 => Outgoing::html(502, "Bad Gateway"),
        Fault::Status500 => error(500, "server_error", "it failed inside"),
        Fault::Limited(form) => limited(form),
        Fault::Unavailable => {
            error(503, "overloaded", "come back later").header("retry-after-ms", "2")
        }
        Fault::Overloaded => {
            error(529, "overloaded_error", "come back later").header("retry-after-ms", "2")
        }
        Fault::WrappedError => Outgoing::json(
            200,
            &json!({"error": {"code": 502, "message": "no upstream"}}),
        ),
        Fault::DuplicateIndex if good.status == 200 => with_body(duplicate(&good.body)?),
        Fault::Redirect => {
            Outgoing::json(307, &json!({})).header("location", "http://elsewhere.example/v1")
        }
        Fault::TooLarge => with_body(format!("{}{}", good.body, " ".repeat(TOO_LARGE))),
        Fault::Unauthorized => error(401, "invalid_api_key", "the key is wrong"),
        Fault::PaymentRequired => error(402, "payment_required", "nothing is left"),
        Fault::InsufficientQuota => error(429, "insufficient_quota", "nothing is left"),
        _ => return None,
    })
}

/// 429 with headers that say when to come back: in a few milliseconds, in one of the forms that servers use.
fn limited(form: LimitHeader) -> Outgoing {
    let body = json!({"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}});
    let answer = Outgoing::json(429, &body);
    match form {
        LimitHeader::Milliseconds => answer.header("retry-after-ms", "3"),
        LimitHeader::Seconds => answer.header("retry-after", "0"),
        LimitHeader::Fraction => answer.header("retry-after", "0.004"),
        LimitHeader::Date => answer.header("retry-after", http_date(SystemTime::now())),
        LimitHeader::Bucket => answer
            .header("x-ratelimit-limit-requests", "60")
            .header("x-ratelimit-remaining-requests", "0")
            .header("x-ratelimit-reset-requests", "12ms"),
        LimitHeader::FullBucket => answer
            .header("retry-after-ms", "2.5")
            .header("x-ratelimit-remaining-requests", "5000")
            .header("x-ratelimit-reset-requests", "6m0s")
            .header("x-ratelimit-remaining-tokens", "4000000")
            .header("x-ratelimit-reset-tokens", "6m0s"),
        LimitHeader::MinusOne => answer
            .header("retry-after-ms", "1")
            .header("retry-after", "-1")
            .header("x-ratelimit-remaining-requests", "-1")
            .header("x-ratelimit-reset-requests", "-1")
            .header("x-ratelimit-remaining-tokens", "-1")
            .header("x-ratelimit-reset-tokens", "-1"),
    }
}

/// A time as HTTP writes it (RFC 9110, section 5.6.7).
fn http_date(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut left) = (1970, days);
    let length = |year: u64| {
        let is_leap =
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        if is_leap { 366 } else { 365 }
    };
    while left >= length(year) {
        left -= length(year);
        year += 1;
    }
    let february = length(year) - 337;
    let mut month = 0;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][days as usize % 7];
    let months = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    format!(
        "{weekday}, {:02} {} {year} {:02}:{:02}:{:02} GMT",
        left + 1,
        months[month],
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60
    )
}

/// The items of a list of embeddings, the last one first.
fn reorder(body: &mut String) {
    if let Ok(mut list) = serde_json::from_str::<Value>(body)
        && let Some(items) = list.get_mut("data").and_then(Value::as_array_mut)
    {
        items.reverse();
        *body = list.to_string();
    }
}

/// The list with one more item, whose index another one has.
fn duplicate(body: &str) -> Option<String> {
    let mut list: Value = serde_json::from_str(body).ok()?;
    let items = list.get_mut("data")?.as_array_mut()?;
    let again = items.first()?.clone();
    items.push(again);
    Some(list.to_string())
}

/// Puts the head of the request wherever an error can hold it.
fn repeat_headers(mut answer: Outgoing, head: &str) -> Outgoing {
    let head = head.replace("\r\n", " ");
    match serde_json::from_str::<Value>(&answer.body) {
        Ok(mut body) => {
            for name in ["message", "code", "type"] {
                if let Some(text) = body.pointer_mut(&format!("/error/{name}")) {
                    *text = format!("{} {head}", text.as_str().unwrap_or_default()).into();
                }
            }
            if let Some(detail) = body.get_mut("detail") {
                *detail = json!([{"input": head}]);
            }
            answer.body = body.to_string();
        }
        Err(_) => answer.body = format!("<p>{head}</p>{}", answer.body),
    }
    for (name, value) in &mut answer.headers {
        if *name == "location" {
            *value = format!("{value}?{}", head.replace(' ', "+"));
        }
    }
    answer.header("x-request", head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_http_writes_them() {
        let at = |seconds| http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(at(1_735_689_599), "Tue, 31 Dec 2024 23:59:59 GMT");
    }
}
