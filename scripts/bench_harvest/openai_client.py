"""Ask an OpenAI-compatible server about every row, as a script of a user does: AsyncOpenAI and a semaphore.

usage: openai_client.py URL ROWS.jsonl ANSWERS.jsonl CONCURRENCY
"""

import asyncio
import json
import sys

from openai import AsyncOpenAI


async def main(url: str, rows: str, answers: str, concurrency: int) -> None:
    client = AsyncOpenAI(base_url=url, api_key="none")
    semaphore = asyncio.Semaphore(concurrency)
    with open(rows, encoding="utf-8") as source, open(answers, "w", encoding="utf-8") as sink:

        async def ask(text: str) -> None:
            async with semaphore:
                reply = await client.chat.completions.create(
                    model="instant", messages=[{"role": "user", "content": text}], max_tokens=16, temperature=0.0
                )
            answer = {
                "text": text,
                "answer": reply.choices[0].message.content,
                "finish_reason": reply.choices[0].finish_reason,
                "tokens": reply.usage.total_tokens if reply.usage else None,
            }
            sink.write(json.dumps(answer) + "\n")

        await asyncio.gather(*(ask(json.loads(line)["text"]) for line in source))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
