# shellcheck shell=bash
# Sourced by every step: the work folder (first argument, default target/real_servers), the Python that runs the
# helpers (see ../real_run/environment.sh), and where the servers listen.

set -- "${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/target/real_servers}" "${@:2}"
source "$(dirname "${BASH_SOURCE[0]}")/../real_run/environment.sh"
steps="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

say() {
    echo "real_servers: $*" >&2
}

# Each server, and the port on which `recorder.py` stands before it and keeps what is said.
# shellcheck disable=SC2034
chat_port=8190 chat_recorded=8200             # llama-server, text and pictures, f32
embeddings_port=8191 embeddings_recorded=8201 # llama-server --embeddings
router_recorded=8202                          # the first and the next in turn, under one name
rounded_port=8192 rounded_recorded=8204       # llama-server, the same model in q8_0, no pictures
transformers_port=8193 transformers_recorded=8203
