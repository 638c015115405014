//! A small S3 endpoint in this process, on a real socket: objects in memory, conditional writes under one lock, lists
//! in pages of three, and faults on demand. It checks no signature. `scripts/store_check` runs the same tests against
//! servers of another make.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tokio::sync::oneshot;

/// Objects in one page of a list; S3 gives 1000.
const PAGE: usize = 3;

/// The one bucket there is.
pub(crate) const BUCKET: &str = "bucket";

#[derive(Clone, Debug)]
struct Object {
    bytes: Vec<u8>,
    tag: String,
    written: SystemTime,
}

/// What the server holds and how it behaves.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault by itself")]
pub(crate) struct Objects {
    by_key: BTreeMap<String, Object>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    num_tags: u64,
    /// Statuses to answer to the next requests, instead of doing them.
    pub(crate) faults: VecDeque<u16>,
    /// What the next error says.
    pub(crate) message: String,
    /// Seconds by which the server's clock is ahead.
    pub(crate) seconds_ahead: u64,
    /// Whether it leaves out what time it is.
    pub(crate) hides_time: bool,
    /// Whether it writes whatever the condition.
    pub(crate) ignores_conditions: bool,
    /// Whether parts of uploads are refused.
    pub(crate) refuses_parts: bool,
    /// Whether parts of objects are refused.
    pub(crate) refuses_ranges: bool,
    /// Whether what makes a shard is left to wait: its one request, or the last one of an upload.
    pub(crate) holds_shards: bool,
    /// Whether the next write is done and answered with an error.
    pub(crate) loses_answer: bool,
    /// Method and target of each request.
    pub(crate) requests: Vec<String>,
}

/// A running server; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    objects: Arc<Mutex<Objects>>,
    _stop: oneshot::Sender<()>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let objects = Arc::new(Mutex::new(Objects::default()));
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&objects));
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    served = axum::serve(listener, router) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            objects,
            _stop: stop,
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap()
    }
}

impl Objects {
    /// The keys there are.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.by_key.keys().cloned().collect()
    }

    /// What stands under a key.
    pub(crate) fn bytes(&self, key: &str) -> Vec<u8> {
        self.by_key[key].bytes.clone()
    }

    /// Uploads that were begun and neither finished nor given up.
    pub(crate) fn num_uploads(&self) -> usize {
        self.uploads.len()
    }

    fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_secs(self.seconds_ahead)
    }

    fn may_write(&self, key: &str, headers: &HeaderMap) -> bool {
        let present = self.by_key.get(key);
        let named = |name| headers.get(name).map(|value| value.to_str().unwrap());
        self.ignores_conditions
            || (!(named("if-none-match") == Some("*") && present.is_some())
                && named("if-match")
                    .is_none_or(|tag| present.is_some_and(|object| object.tag == tag)))
    }

    fn write(&mut self, key: &str, bytes: Vec<u8>) -> Response {
        self.num_tags += 1;
        let tag = format!("\"{}\"", self.num_tags);
        let object = Object {
            bytes,
            tag: tag.clone(),
            written: self.now(),
        };
        self.by_key.insert(key.to_owned(), object);
        if std::mem::take(&mut self.loses_answer) {
            return refuse(StatusCode::NOT_EXTENDED, "the answer was lost");
        }
        ([("etag", tag)], "").into_response()
    }

    fn read(&self, key: &str, headers: &HeaderMap) -> Response {
        let Some(object) = self.by_key.get(key) else {
            return refuse(StatusCode::NOT_FOUND, "no such key");
        };
        let size = object.bytes.len();
        let range = headers.get("range").map(|range| {
            let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let end = end.parse().map_or(size, |last: usize| size.min(last + 1));
            start.parse::<usize>().unwrap()..end
        });
        let headers = [
            ("etag", object.tag.clone()),
            ("last-modified", httpdate::fmt_http_date(object.written)),
        ];
        match range {
            None => (headers, object.bytes.clone()).into_response(),
            Some(range) if range.start >= size => {
                refuse(StatusCode::RANGE_NOT_SATISFIABLE, "out of range")
            }
            Some(range) => {
                let part = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                let status = StatusCode::PARTIAL_CONTENT;
                let bytes = object.bytes[range].to_vec();
                (status, [("content-range", part)], headers, bytes).into_response()
            }
        }
    }

    fn list(&self, query: &BTreeMap<String, String>) -> Response {
        let of = |name: &str| query.get(name).map_or("", String::as_str);
        let (prefix, after) = (of("prefix"), of("continuation-token"));
        assert_eq!(of("delimiter"), "/", "a store lists one level");
        let nested = |key: &str| key[prefix.len()..].contains('/');
        let keys = self
            .by_key
            .keys()
            .filter(|key| key.starts_with(prefix) && key.as_str() > after && !nested(key));
        let keys: Vec<&String> = keys.take(PAGE + 1).collect();
        let is_truncated = keys.len() > PAGE;
        let mut xml = format!("<ListBucketResult><IsTruncated>{is_truncated}</IsTruncated>");
        for key in keys.iter().take(PAGE) {
            let object = &self.by_key[*key];
            let _ = write!(
                xml,
                "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>{}</LastModified><ETag>{}</ETag></Contents>",
                object.bytes.len(),
                humantime::format_rfc3339_millis(object.written),
                object.tag
            );
        }
        if is_truncated {
            let last = keys[PAGE - 1];
            let _ = write!(xml, "<NextContinuationToken>{last}</NextContinuationToken>");
        }
        (xml + "</ListBucketResult>").into_response()
    }

    fn begin_upload(&mut self) -> Response {
        self.num_tags += 1;
        let id = format!("upload{}", self.num_tags);
        let xml = format!(
            "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>k</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
        );
        self.uploads.insert(id, BTreeMap::new());
        xml.into_response()
    }

    fn add_part(&mut self, id: &str, number: &str, bytes: Vec<u8>) -> Response {
        let Some(parts) = self.uploads.get_mut(id) else {
            return refuse(StatusCode::NOT_FOUND, "no such upload");
        };
        parts.insert(number.parse().unwrap(), bytes);
        ([("etag", format!("\"part{number}\""))], "").into_response()
    }

    fn end_upload(&mut self, key: &str, id: &str, listed: &str) -> Response {
        let parts = self.uploads.remove(id).unwrap();
        assert_eq!(listed.matches("<PartNumber>").count(), parts.len());
        self.write(key, parts.into_values().flatten().collect());
        "<CompleteMultipartUploadResult><ETag>\"whole\"</ETag></CompleteMultipartUploadResult>"
            .into_response()
    }

    fn do_it(&mut self, request: &Request<()>, bytes: Vec<u8>) -> Response {
        let path = request.uri().path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket != BUCKET {
            return refuse(StatusCode::NOT_FOUND, "NoSuchBucket");
        }
        let query = parse_query(request.uri().query().unwrap_or_default());
        let upload = query.get("uploadId").map(String::as_str);
        match (request.method(), upload) {
            (&Method::GET, _) if key.is_empty() => self.list(&query),
            (&Method::GET, _) if self.refuses_ranges && request.headers().contains_key("range") => {
                refuse(StatusCode::FORBIDDEN, "no ranges")
            }
            (&Method::GET | &Method::HEAD, _) => self.read(key, request.headers()),
            (&Method::POST, None) if query.contains_key("uploads") => self.begin_upload(),
            (&Method::PUT, Some(_)) if self.refuses_parts => {
                refuse(StatusCode::FORBIDDEN, "no parts")
            }
            (&Method::PUT, Some(id)) => self.add_part(id, &query["partNumber"], bytes),
            (&Method::POST, Some(id)) => {
                self.end_upload(key, id, std::str::from_utf8(&bytes).unwrap())
            }
            (&Method::DELETE, Some(id)) => {
                self.uploads.remove(id);
                StatusCode::NO_CONTENT.into_response()
            }
            (&Method::PUT, None) if !self.may_write(key, request.headers()) => refuse(
                StatusCode::PRECONDITION_FAILED,
                "the condition does not hold",
            ),
            (&Method::PUT, None) => self.write(key, bytes),
            (&Method::DELETE, None) => {
                self.by_key.remove(key);
                StatusCode::NO_CONTENT.into_response()
            }
            _ => refuse(StatusCode::NOT_IMPLEMENTED, "no such call"),
        }
    }
}

async fn answer(State(objects): State<Arc<Mutex<Objects>>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap();
    let request = Request::from_parts(parts, ());
    let target = format!("{} {}", request.method(), request.uri());
    objects.lock().unwrap().requests.push(target.clone());
    let is_whole = target.starts_with("PUT ") && target.ends_with(".parquet");
    let is_last = target.starts_with("POST ") && target.contains("uploadId=");
    let is_shard = (is_whole || is_last) && !bytes.is_empty();
    while is_shard && objects.lock().unwrap().holds_shards {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut objects = objects.lock().unwrap();
    let mut response = match objects.faults.pop_front() {
        Some(status) => refuse(StatusCode::from_u16(status).unwrap(), &objects.message),
        None if !request.headers().contains_key("authorization") => {
            refuse(StatusCode::FORBIDDEN, "no signature")
        }
        None => objects.do_it(&request, bytes.into()),
    };
    let date = if objects.hides_time {
        "unknown".to_owned()
    } else {
        httpdate::fmt_http_date(objects.now())
    };
    response.headers_mut().insert("date", date.parse().unwrap());
    response
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (
        status,
        format!("<Error><Message>{message}</Message></Error>"),
    )
        .into_response()
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs
        .map(|(name, value)| (name.to_owned(), value.replace("%2F", "/")))
        .collect()
}
