#!/usr/bin/env python3
"""Rows of a believable CRM, deterministic: one TSV a table in PostgreSQL's COPY text format.

    crm_rows.py OUT_DIR [--scale 1.0] [--part base|day1|day2]

`base` is the data itself, `day1` and `day2` are the rows that such a day appends (1 % of each table). Scale 1.0 is about 1.5 GB in
PostgreSQL with indexes. Free text is Zipf-distributed over 6,000 words with about 12 % Chinese sentences; custom fields are JSON;
attachments (about 15 % of the database) are random bytes that nothing compresses.
"""
import argparse
import itertools
import json
import os
import random
import sys
from multiprocessing import Process

TABLES = {"accounts": 100_000, "contacts": 400_000, "activities": 1_000_000, "orders": 800_000,
          "call_records": 1_600_000, "attachments": 6_000}
SEED = 20240607
FIRST_SECOND = 1_600_000_000  # 2020-09-13
YEARS = 4

COMMON = """customer account invoice contract renewal pricing discount meeting follow call email proposal demo
quarter budget approval procurement legal security review pilot rollout support ticket escalation shipment delay
payment overdue refund credit license seat upgrade downgrade churn competitor migration integration export import
dashboard report pipeline forecast stage qualified closed won lost decision stakeholder champion manager director
engineer finance operations marketing partner reseller region north south east west office onsite remote training
onboarding deadline milestone requirement specification change request confirmed pending waiting reply sent received
scheduled cancelled tomorrow yesterday next week month year agreed asked will need should before after because
about with from they their our team has have been was were not yet also only more less than still and the a to of
for in on is it that this please we you be as at by or an if can could would please thanks regards""".split()
HAN = ("客户联系跟进合同报价付款发票续约会议演示需求预算审批采购安全评审试点部署支持工单升级延期退款授权迁移集成导出数据报表预测阶段"
       "赢单丢单决策负责人经理总监财务运营市场合作伙伴区域北京上海广州深圳杭州成都培训上线截止确认等待回复发送安排取消明天下周本月"
       "已经需要希望尽快价格折扣产品方案电话邮件拜访")
SURNAMES = """Smith Jones Taylor Brown Wilson Evans Thomas Johnson Roberts Walker Wright Robinson Thompson White Hughes
Edwards Green Hall Wood Harris Lewis Martin Jackson Clarke Clark Turner Hill Scott Cooper Morris Ward Moore King Watson
Baker Harrison Morgan Patel Young Allen""".split()
GIVEN = """James Mary John Patricia Robert Jennifer Michael Linda William Elizabeth David Barbara Richard Susan Joseph
Jessica Thomas Sarah Charles Karen Wei Fang Lei Min Jun Yan Hao Ling Ana Luis Marta Ivan Olga Priya Arjun Fatima Omar
Yuki Kenji Hana""".split()
HAN_SURNAMES = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗"
INDUSTRIES = ["Manufacturing", "Retail", "Healthcare", "Software", "Logistics", "Finance", "Education", "Energy", "Telecom",
              "Government"]
CURRENCIES = ["USD", "EUR", "CNY", "GBP", "JPY"]
STAGES = ["new", "qualified", "proposal", "negotiation", "won", "lost"]
KINDS = ["note", "email", "meeting", "task", "call"]
COUNTRIES = ("CN", "US", "DE", "GB", "FR", "JP", "BR", "IN")


def vocabulary():
    """6,000 words, common ones first, and their cumulative Zipf weights."""
    rng = random.Random(SEED)
    words = list(dict.fromkeys(COMMON))
    common = len(words)
    known = set(words)
    while len(words) < 6000:
        syllables = rng.choice((2, 2, 3, 3, 4))
        word = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(syllables))
        word += rng.choice(("", "n", "r", "s", "t", ""))
        if word not in known:
            known.add(word)
            words.append(word)
    head = words[:common]
    rng.shuffle(head)
    words[:common] = head
    return words, list(itertools.accumulate(1.0 / (rank + 8) ** 0.92 for rank in range(len(words))))


class Writer:
    """The random text of one table and part."""

    def __init__(self, table, part):
        self.rng = random.Random(f"{SEED}/{table}/{part}")
        self.vocabulary, self.weights = vocabulary()

    def words(self, count):
        return " ".join(self.rng.choices(self.vocabulary, cum_weights=self.weights, k=count))

    def text(self, fewest, most):
        rng, left, out = self.rng, self.rng.randint(fewest, most), []
        while left > 0:
            count = min(left, rng.randint(5, 16))
            left -= count
            if rng.random() < 0.12:
                out.append("".join(rng.choices(HAN, k=count * 2)) + "。")
            else:
                sentence = self.words(count)
                out.append(sentence[0].upper() + sentence[1:] + (". " if rng.random() < 0.8 else ".\\n"))
        if rng.random() < 0.5:
            out.append(f"Ref #{rng.randrange(10**8)} ")
        return "".join(out).rstrip("\\")

    def person(self):
        if self.rng.random() < 0.2:
            return self.rng.choice(HAN_SURNAMES) + "".join(self.rng.choices(HAN, k=2))
        return self.rng.choice(GIVEN) + " " + self.rng.choice(SURNAMES)

    def moment(self):
        """A second within the years covered, as text (the civil-from-days algorithm: the datetime module is far slower)."""
        seconds = FIRST_SECOND + self.rng.randrange(YEARS * 365 * 86400)
        day, rest = divmod(seconds, 86400)
        shifted = day + 719468
        era, day_of_era = divmod(shifted, 146097)
        year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
        day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
        part = (5 * day_of_year + 2) // 153
        month = part + 3 if part < 10 else part - 9
        year = year_of_era + era * 400 + (month <= 2)
        return (f"{year:04d}-{month:02d}-{day_of_year - (153 * part + 2) // 5 + 1:02d} "
                f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}")

    def custom_fields(self):
        rng = self.rng
        fields = {"source": rng.choice(("web", "fair", "referral", "import", "partner")), "score": rng.randrange(100),
                  "tags": [rng.choice(self.vocabulary[:400]) for _ in range(rng.randrange(4))], "vip": rng.random() < 0.05}
        if rng.random() < 0.6:
            value = rng.choice(self.vocabulary) if rng.random() < 0.5 else round(rng.random() * 1e4, 2)
            fields[f"custom_{rng.randrange(40)}"] = value
        if rng.random() < 0.3:
            fields["备注"] = "".join(rng.choices(HAN, k=6))
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def rows(table, part, ids, counts):
    w = Writer(table, part)
    rng, vocab = w.rng, w.vocabulary
    account = lambda: rng.randrange(1, counts["accounts"] + 1)
    contact = lambda: rng.randrange(1, counts["contacts"] + 1)
    for i in ids:
        if table == "accounts":
            name = " ".join(word.capitalize() for word in rng.choices(vocab[200:], k=2))
            name += " " + rng.choice(("Ltd", "Inc", "GmbH", "SA", "有限公司"))
            yield (i, name, rng.choice(INDUSTRIES), f"https://www.{rng.choice(vocab)}{i}.example",
                   f"{rng.randrange(1, 999)} {rng.choice(vocab).capitalize()} St", rng.choice(COUNTRIES),
                   f"{rng.randrange(10**9) / 100:.2f}", w.moment(), w.custom_fields(), w.text(10, 40))
        elif table == "contacts":
            name = w.person()
            yield (i, account(), name, f"{rng.choice(vocab)}.{i}@{rng.choice(vocab[:2000])}.example",
                   f"+{rng.randrange(1, 99)}-{rng.randrange(10**9, 10**10)}", rng.choice(vocab[:200]), w.moment(),
                   w.custom_fields())
        elif table == "activities":
            yield (i, account(), contact(), rng.choice(KINDS), w.words(rng.randint(3, 9)), w.text(20, 140), w.moment(),
                   rng.randrange(1, 200))
        elif table == "orders":
            yield (i, account(), w.moment(), rng.choice(STAGES), f"{rng.randrange(10**7) / 100:.2f}", rng.choice(CURRENCIES),
                   rng.randrange(1, 500), w.custom_fields() if rng.random() < 0.3 else "\\N")
        elif table == "call_records":
            yield (i, contact(), rng.randrange(1, 200), w.moment(), rng.randrange(0, 3600), f"{rng.random() * 5:.4f}",
                   f"+{rng.randrange(1, 99)}{rng.randrange(10**9, 10**10)}", rng.choice(("in", "out")),
                   f"{rng.gauss(0.5, 0.2):.6f}")
        else:
            yield (i, rng.randrange(1, counts["activities"] + 1), f"scan_{i}.jpg", "image/jpeg",
                   "\\\\x" + rng.randbytes(rng.randint(8_000, 72_000)).hex())


def write_tables(out, part, counts, tables):
    for table in tables:
        first, last = 1, counts[table]
        if part != "base":
            appended = max(1, counts[table] // 100)
            first = counts[table] + 1 + (int(part[3:]) - 1) * appended
            last = first + appended - 1
        with open(os.path.join(out, f"{table}.tsv"), "w", encoding="utf-8", buffering=1 << 20) as file:
            for row in rows(table, part, range(first, last + 1), counts):
                file.write("\t".join(map(str, row)) + "\n")


def write_part(out, scale, part):
    """Writes one part into a folder; two processes, because one table is half of the work."""
    os.makedirs(out, exist_ok=True)
    counts = {table: max(100, int(count * scale)) for table, count in TABLES.items()}
    halves = (["activities"], [table for table in TABLES if table != "activities"])
    workers = [Process(target=write_tables, args=(out, part, counts, half)) for half in halves]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(f"writing the rows of {part} failed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--part", default="base", choices=["base", "day1", "day2"])
    options = parser.parse_args()
    sys.exit(write_part(options.out, options.scale, options.part))
