"""Bad input is one line with the nearest valid answer and exit code 2, and nothing is written.

The tables have a case for every option of every command, every field of a spec, and every variable of the environment
and of make. A new one without a case fails a test.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from faults import in_child
from support import run_attempt
from torture import __main__ as torture

from analysis import report
from gptlab import cli, project
from gptlab.spec import SECTIONS, Experiment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
HERE, EXPORT = "THE-RUN", "THE-EXPORT"

COMMANDS = [
    ("lst", "No such command 'lst'; did you mean 'list'?"),
    ("train", "No such command 'train'; available: list, show, "),
    ("list --jsn", "No such option: --jsn; did you mean '--json'?"),
    ("list extra", "unexpected extra argument"),
    ("show", "Missing argument 'NAME-or-RUN'"),
    ("show basline", "there is no experiment 'basline'; did you mean 'baseline'?"),
    ("show micro", "matches micro-"),
    ("plan", "Missing argument 'NAME'"),
    ("plan basline", "there is no experiment 'basline'; did you mean 'baseline'?"),
    ("plan baseline --gpus 0", "'--gpus': Input should be greater than or equal to 1"),
    ("plan baseline --gpus many", "'--gpus': Input should be a valid integer"),
    ("plan baseline --shard", "only one; add --gpus 2 or more"),
    ("plan baseline --gpus 1 --shard", "only one; add --gpus 2 or more"),
    ("plan baseline --gpus 2 --set model.dropout=0.1", "model.dropout is 0.1, which 2 processes cannot divide"),
    ("plan baseline --gpus 3 --set model.dropout=0.1", "model.dropout is 0.1, which 3 processes cannot divide"),
    ("plan baseline --device tpu", "--device is 'tpu'; choose auto, cpu or cuda"),
    ("plan baseline --set train.step=2", "did you mean 'train.steps'?"),
    ("plan baseline --steps 0", "'--steps': Input should be"),
    ("plan baseline --text missing.txt", "there is no file 'missing.txt'"),
    ("run", "Missing argument 'NAME'"),
    ("run bseline", "did you mean 'baseline'?"),
    ("run zzz", "available: baseline, tiny-no-bias, tiny-shallow, gpt2-small, "),
    ("run ../x", "there is no experiment '../x'"),
    ("run tiny --fres", "--fresh"),
    ("run tiny --steps 0", "'--steps': Input should be"),
    ("run tiny --steps many", "'--steps': Input should be a valid integer"),
    ("run tiny --steps 1000000000", "'--steps': Input should be"),
    ("run tiny --branch nothing@5", "there is no run 'nothing'"),
    ("run tiny --branch nothing@last", "--branch expects RUN or RUN@STEP, not 'nothing@last'"),
    ("run tiny --from nothing@1 --branch nothing@1", "--from and --branch exclude each other"),
    ("run tiny --seed -1", "'--seed': Input should be"),
    ("run tiny --seed 9223372036854775808", "'--seed'"),
    ("run tiny --seeds 0..4", "--seeds expects numbers such as 0,1,2 or 0-4, not '0..4'"),
    ("run tiny --seeds 0,0", "--seeds names seed 0 twice"),
    ("run tiny --seeds 0,1 --seed 2", "--seed and --seeds exclude each other"),
    ("run tiny --seeds 0,1 --branch nothing", "a branch has the seed of its parent"),
    ("run tiny --seeds 0,1 --from nothing", "there is no run 'nothing'"),
    ("run tiny --seeds 0,1 --text missing.txt", "there is no file 'missing.txt'"),
    ("run tiny --nproc 0", "'--nproc': Input should be"),
    ("run tiny --nproc 3", "cannot be divided by 3 processes; use 1, 2, 4 or 8 processes"),
    ("run tiny --nproc 2 --set model.dropout=0.1", "model.dropout is 0.1, which 2 processes cannot divide"),
    ("run tiny --nproc 2 --seeds 0,1", "--seeds works with one process per run only"),
    ("run tiny --shard", "there is only one; add --nproc 2 or more"),
    ("run tiny --timeout 0", "'--timeout': Input should be"),
    ("run tiny --device tpu", "there is no device 'tpu'; choose auto, cpu, cuda or mps"),
    ("run tiny --device cuda", "PyTorch finds no cuda device on this machine; use --device auto"),
    ("run tiny --wandb on", "'on' is not one of 'online', 'offline', 'off'"),
    ("run tiny --artifacts all", "'all' is not one of 'best', 'final'"),
    ("run tiny --tag=", "--tag must have 1 to 64 printable characters, not ''"),
    (f"run tiny --tag={'x' * 65}", "--tag must have 1 to 64"),
    ("run tiny --notes", "'--notes' requires an argument"),
    ("run tiny --notes caf\udce9", "--notes must be UTF-8 text, not 'caf\\udce9'"),
    ("run tiny --from nothing", "there is no run 'nothing'"),
    ("sweep", "Missing argument 'NAME'"),
    ("sweep learning-rat", "there is no sweep or experiment 'learning-rat'; did you mean 'learning-rate'?"),
    ("sweep learning-rate tiny", "give one sweep or several experiments, not learning-rate, tiny"),
    ("sweep tiny tiny", "experiment tiny is named twice"),
    ("sweep tiny --jobs 0", "'--jobs': Input should be"),
    ("sweep tiny --jobs many", "'--jobs': Input should be a valid integer"),
    ("sweep tiny --seeds 2-0", "--seeds 2-0: a range goes up"),
    ("sweep tiny --steps 0", "'--steps': Input should be"),
    ("sweep tiny --set train.learningrate=1", "did you mean 'train.learning_rate'?"),
    ("sweep tiny --text missing.txt", "there is no file 'missing.txt'"),
    ("sweep tiny --device cuda", "PyTorch finds no cuda device on this machine"),
    ("sweep tiny --wandb on", "'on' is not one of 'online', 'offline', 'off'"),
    ("sweep tiny --tag=", "--tag must have 1 to 64 printable characters, not ''"),
    ("sweep tiny --slurm --device tpu", "there is no device 'tpu'; choose auto, cpu, cuda or mps"),
    ("sweep tiny --slurm --jobs 2", "--jobs is for processes on this machine; with --slurm, use --array-parallelism"),
    ("sweep tiny --partition gpu", "--partition is for jobs of Slurm; add --slurm, or leave it out"),
    ("sweep tiny --array-parallelism 2", "--array-parallelism is for jobs of Slurm; add --slurm"),
    ("sweep tiny --slurm --array-parallelism 0", "'--array-parallelism': Input should be"),
    ("sweep tiny --slurm --gpus 3", "train.batch_size 8 cannot be divided by 3 processes; use 1, 2, 4 or 8 processes"),
    ("sweep tiny --slurm --nodes 2 --nproc 3", "train.batch_size 8 cannot be divided by 6 processes"),
    ("sweep tiny --slurm --nodes 0", "'--nodes': Input should be"),
    ("sweep tiny --slurm --nproc 0", "'--nproc': Input should be"),
    ("sweep tiny --nproc 2", "--nproc is for jobs of Slurm; add --slurm, or leave it out"),
    ("sweep tiny --shard", "--shard is for jobs of Slurm; add --slurm, or leave it out"),
    ("sweep tiny --slurm --shard", "there is only one; add --nproc 2 or more"),
    (
        "sweep tiny --slurm --nproc 4 --gpus 2",
        "4 processes on each node need a GPU each, but there are 2; use --nproc 2",
    ),
    ("sweep tiny --slurm --gpus -1", "'--gpus': Input should be"),
    ("sweep tiny --slurm --gpus two", "'--gpus': Input should be a valid integer"),
    ("sweep tiny --slurm --cpus 0", "'--cpus': Input should be"),
    ("sweep tiny --slurm --time=", "--time: must be one word without spaces and quotes, not ''"),
    ("sweep tiny --slurm --memory=", "--memory: must be one word without spaces and quotes, not ''"),
    ("sweep tiny --slurm --account=", "--account: must be one word without spaces and quotes, not ''"),
    ("sweep tiny --slurm --qos=", "--qos: must be one word without spaces and quotes, not ''"),
    ("sweep tiny --slurm --constraint=", "--constraint: must be one word without spaces and quotes, not ''"),
    ("sweep tiny --slurm --partition=", "--partition: must be one word without spaces and quotes, not ''"),
    (f"run tiny --from {HERE}@last", "--from expects RUN or RUN@STEP"),
    (f"run tiny --from {HERE}@7", "keeps no checkpoint of step 7; available: 10, 20"),
    (f"run tiny --from {HERE}@20", "belongs to another model"),
    ("run tiny --set learning_rate", "--set expects KEY=VALUE such as train.learning_rate=1e-3, not 'learning_rate'"),
    ("run tiny --set learning_rate=1", "did you mean 'train.learning_rate'?"),
    ("run tiny --set model.n_heads=2", "did you mean 'model.n_head'?"),
    ("run tiny --set name=other", "write a variant in experiments/"),
    ("run tiny --set model.n_head=3", "n_embd 128 is not divisible by n_head 3; valid values: 1, 2, 4"),
    ("run tiny --set train.sequence_length=2000", "exceeds model.context_length 1024"),
    ("run tiny --text missing.txt", "there is no file 'missing.txt'; give the path of a .txt"),
    ("run tiny --text shakespear", "did you mean 'shakespeare'?"),
    ("run tiny --text /", "not a regular file"),
    ("decide", "Missing argument 'A'"),
    ("decide tiny", "Missing argument 'B'"),
    ("decide tiny tiny-relu", "--margin is required"),
    ("decide tiny tiny-relu --margin wide", "'--margin': Input should be a valid number"),
    ("decide tiny tiny-relu --margin 0", "--margin must be a positive number of nats/token, such as 0.02, not 0"),
    ("decide tiny tiny-relu --margin -0.02", "--margin must be a positive number of nats/token"),
    ("decide tiny tiny-relu --margin nan", "such as 0.02, not nan"),
    ("decide tiny tiny-relu --margin inf", "such as 0.02, not inf"),
    ("decide tiny tiny-relu --margin 0.1 --max-seeds 2", "--max-seeds must be 3 to 50, not 2"),
    ("decide tiny tiny-relu --margin 0.1 --max-seeds 0", "--max-seeds must be 3 to 50, not 0"),
    ("decide tiny tiny-relu --margin 0.1 --max-seeds 51", "--max-seeds must be 3 to 50, not 51"),
    ("decide tiny tiny-relu --margin 0.1 --comparisons 0", "--comparisons must be 1 to 10, not 0"),
    ("decide tiny tiny-relu --margin 0.1 --steps 0", "'--steps': Input should be"),
    ("decide tiny tiny-relu --margin 0.1 --text missing.txt", "there is no file 'missing.txt'"),
    ("decide tiny tiny-relu --margin 0.1 --set train.step=2", "did you mean 'train.steps'?"),
    ("decide tiny tiny-relu --margin 0.1 --device tpu", "there is no device 'tpu'"),
    ("decide tiny tiny-relu --margin 0.1 --wandb on", "'on' is not one of 'online', 'offline', 'off'"),
    ("decide tiny tiny-relu --margin 0.1 --tag=", "--tag must have 1 to 64 printable characters, not ''"),
    ("decide tiny tiny-rel --margin 0.1", "there is no experiment 'tiny-rel'; did you mean 'tiny-relu'?"),
    ("decide tiny tiny --margin 0.1", "tiny is compared with itself; name two experiments that differ"),
    ("decide tiny baseline --margin 0.1", "tiny and baseline differ in data.val_windows (64 and 32)"),
    ("resume nothing", "there is no run 'nothing'"),
    ("resume micr", "matches micro-"),
    (f"resume {HERE} --steps 0", "'--steps': Input should be"),
    (f"resume {HERE} --nproc 0", "'--nproc': Input should be"),
    (f"resume {HERE} --timeout 0", "'--timeout': Input should be"),
    (f"resume {HERE} --device tpu", "choose auto, cpu, cuda or mps"),
    (f"resume {HERE} --artifacts all", "'all' is not one of 'best', 'final'"),
    (f"resume {HERE} --wandb never", "'never' is not one of 'online', 'offline', 'off'"),
    ("runs --yes", "No such option: --yes"),
    ("report --name zzz", "there is no run with name 'zzz'; `gptlab runs` lists them"),
    ("report --tag zzz", "there is no run with tag 'zzz'"),
    ("report --at 7", "--at is '7', but no run was validated at that step; measured steps: 0, 10, 20"),
    ("report --against zzz", "--against is 'zzz', but the experiments are: "),
    ("report --table html", "--table is 'html', which is none of: markdown, latex"),
    ("report --table latex --open", "--table prints a table and writes no file; leave out --out, --figures and --open"),
    ("report --out=", "--out is '', which cannot be a directory"),
    ("report --figures=", "--figures is '', which cannot be a directory"),
    ("runs --name", "'--name' requires an argument"),
    ("runs --status done", "'done' is not one of 'running', 'complete'"),
    ("runs --tag", "'--tag' requires an argument"),
    ("runs --where train.lr=1", "there is no spec field 'train.lr'"),
    ("runs --where train.learning_rate=fast", "--where train.learning_rate: input should be a valid number"),
    ("runs --sort loss", "--sort is 'loss'; choose run, status, step"),
    ("sample nothing", "there is no run 'nothing'"),
    (f"sample {HERE} --prompt=", "the prompt is empty"),
    (f"sample {HERE} --count 0", "'--count': Input should be greater than or equal to 1"),
    (f"sample {HERE} --count 10001", "'--count': Input should be less than or equal to 10000"),
    (f"sample {HERE} --count many", "'--count': Input should be a valid integer"),
    (f"sample {HERE} --tokens 0", "'--tokens': Input should be"),
    (
        f"sample {HERE} --tokens 99",
        "1 prompt token and 99 new exceed the 16 positions that saw training; ask for at most 15",
    ),
    (f"sample {HERE} --temperature -1", "'--temperature': Input should be"),
    (f"sample {HERE} --temperature nan", "'--temperature': Input should be greater than or equal to 0"),
    (f"sample {HERE} --top-k -1", "'--top-k': Input should be"),
    (f"sample {HERE} --top-p 0", "top_p must be more than 0 and at most 1, not 0.0"),
    (f"sample {HERE} --top-p nan", "'--top-p': Input should be"),
    (f"sample {HERE} --min-p 1.1", "'--min-p': Input should be"),
    (f"sample {HERE} --prompt-file missing.txt", "there is no file 'missing.txt'; give the path of a text with the"),
    (f"sample {HERE} --prompt-file /tmp", "'/tmp' cannot be read: Is a directory"),
    (f"sample {HERE} --prompt-file /dev/null", "the prompt is empty"),
    (f"sample {HERE} --prompt-file /dev/zero", "'/dev/zero' is longer than 1,048,576 bytes, so it is no prompt"),
    (f"sample {HERE} --prompt-file {sys.executable}", "is not UTF-8 at byte"),
    (f"sample {HERE} --prompt a --prompt-file /dev/null", "--prompt and --prompt-file exclude each other"),
    (f"sample {HERE} --seed -1", "'--seed': Input should be"),
    (f"sample {HERE} --step 7", "keeps no checkpoint of step 7; available: 10, 20"),
    (f"sample {EXPORT} --step 7", "--step 7 is for runs; "),
    (f"eval {EXPORT}", "give one to evaluate on: --text FILE, or --string"),
    (f"eval {EXPORT} --string words", "config.json describes a model that gptlab does not have: model_type is llama"),
    (f"run tiny --from {EXPORT}", "config.json describes a model that gptlab does not have: model_type is llama"),
    ("export", "Missing argument 'RUN'"),
    ("export nothing", "Missing argument 'DIR'"),
    ("export nothing out", "there is no run 'nothing'"),
    (f"export {HERE} .", "exists and is not an empty directory"),
    (f"export {HERE} /", "DIR is '/', which cannot be a new directory"),
    (f"export {HERE} ~nobody-of-that-name/x", "DIR is '~nobody-of-that-name/x', which cannot be a directory"),
    (f"export {HERE} {'x' * 5000}", "cannot be written: File name too long"),
    (f"export {HERE} nul\0", "cannot be a directory"),
    (f"export {HERE} out --step 7", "keeps no checkpoint of step 7; available: 10, 20"),
    (f"export {HERE} out --step many", "'--step': Input should be a valid integer"),
    ("tokens", "Missing argument 'RUN|DIR'"),
    ("tokens nothing", "there is no run 'nothing'"),
    ("tokens nothing@3", "there is no run 'nothing'"),
    (f"tokens {HERE} nothing", "there is no run 'nothing'"),
    (f"tokens {HERE}@7", "keeps no checkpoint of step 7; available: 10, 20"),
    (f"tokens {HERE}@-1", "there is no run '"),
    (f"tokens {HERE} --step 7", "keeps no checkpoint of step 7; available: 10, 20"),
    (f"tokens {EXPORT} --step 7", "--step 7 is for runs; "),
    (f"tokens {HERE} --device tpu", "choose auto, cpu, cuda or mps"),
    (f"tokens {HERE} --text missing.txt", "there is no file 'missing.txt'"),
    (f"tokens {HERE} --text missing.txt --string x", "--text and --string exclude each other"),
    (f"tokens {HERE} --string=", "the text is empty; give at least two tokens, such as a sentence"),
    (f"tokens {HERE} --string a", "the text has only one token, and the first one cannot be predicted"),
    (f"tokens {HERE} --from-token -1", "'--from-token': Input should be"),
    (f"tokens {HERE} --from-token {10**30}", f"--from-token is {10**30}, but the validation split of micro-"),
    (f"tokens {HERE} --tokens 1", "'--tokens': Input should be greater than or equal to 2"),
    (f"tokens {HERE} --tokens 4097", "'--tokens': Input should be less than or equal to 4096"),
    (f"tokens {HERE} --out page.txt", "--out is 'page.txt', which cannot be a page; give the path of a file that"),
    ("bundle", "Missing argument 'RUN'"),
    (f"bundle {HERE}", "Missing option '--out' / '-o'"),
    ("bundle nothing -o x.tar", "there is no run 'nothing'"),
    ("bundle zzz* -o x.tar", "matches 'zzz*'; `gptlab runs` lists them"),
    (f"bundle {HERE} --out /", "--out is '/', which cannot be a file"),
    (f"bundle {HERE} --out README.md", "'README.md' exists; pass --force to replace it"),
    (f"bundle {HERE} --out nowhere/x.tar", "which cannot be a file"),
    (f"bundle {HERE} --out {'x' * 5000}", "which cannot be a file"),
    (f"bundle {HERE} --out=", "--out is '', which"),
    (f"bundle {HERE} -o nul\0", "which cannot be a file"),
    (f"bundle {HERE} -o x.tar --checkpoints best", "'best' is not one of 'last', 'all', 'none'"),
    ("verify", "Missing argument 'RUN|BUNDLE'"),
    ("verify nothing.tar", "there is no file 'nothing.tar'"),
    ("verify README.md", "README.md cannot be verified: it is not a tar"),
    (f"verify {HERE} --run nothing", "--run is for bundles, and '"),
    ("verify nothing", "there is no run 'nothing'"),
    (f"verify {HERE} --from 7", "keeps no resumable checkpoint of step 7; available: 10, 20"),
    (f"verify {HERE} --from many", "'--from': Input should be a valid integer"),
    (f"verify {HERE} --from 20", "nothing is to be replayed from step 20 to step 20; pass a smaller --from"),
    (f"verify {HERE} --to 10000", "--to 10000 is after the last step of"),
    (f"verify {HERE} --to 0", "nothing is to be replayed from step 0 to step 0"),
    (f"verify {HERE} --to -1", "'--to': Input should be"),
    (f"verify {HERE} --text /nowhere.txt", "'/nowhere.txt'"),
    ("batch", "Missing argument 'RUN@STEP'"),
    ("batch nothing@3", "there is no run 'nothing'"),
    (f"batch {HERE}", "give the run and the step as RUN@STEP, such as"),
    (f"batch {HERE}@last", "give the run and the step as RUN@STEP, such as"),
    (f"batch {HERE}@-1", "give the run and the step as RUN@STEP"),
    (f"batch {HERE}@20", "has not trained on the batch of step 20; its steps are from 0 to 19"),
    ("eval ./nowhere", "there is no run in './nowhere'"),
    (f"eval {HERE} --text missing.txt", "there is no file 'missing.txt'"),
    (f"eval {HERE} --text missing.txt --string x", "--text and --string exclude each other"),
    (f"eval {HERE} --string=", "the text is empty; give at least two tokens, such as a sentence"),
    (f"eval {HERE} --string a", "the text has only one token, and the first one cannot be predicted"),
    (f"eval {HERE} --string caf\udce9", "the text is not UTF-8; check the terminal's encoding and the locale"),
    (f"resume {HERE} --text missing.txt", "there is no file 'missing.txt'"),
    (f"eval {HERE} {HERE}", "two models are compared with --explain: gptlab eval"),
    (f"eval {HERE} nothing --explain", "there is no run 'nothing'"),
    (f"eval {HERE} --passages 9", "--passages is the number of passages for memorization; add --explain"),
    (f"eval {HERE} --explain --passages 0", "'--passages': Input should be greater than or equal to 1"),
    (f"eval {HERE} --explain --passages 10001", "'--passages': Input should be less than or equal to 10000"),
    (f"eval {EXPORT} --explain", "give one to evaluate on: --text FILE, or --string"),
    (f"eval {HERE} --step -1", "'--step': Input should be"),
    (f"eval {HERE} --device gpu", "choose auto, cpu, cuda or mps"),
    ("diff nothing", "there is no run 'nothing'"),
    (f"diff {HERE} nothing", "there is no run 'nothing'"),
    ("watch nothing", "there is no run 'nothing'"),
    ("watch nothing-*", "matches 'nothing-*'; `gptlab runs` lists them"),
    (f"watch {HERE} --interval 0", "--interval must be 0.1 to 3600 seconds, not 0"),
    (f"watch {HERE} --interval nan", "--interval must be 0.1 to 3600 seconds, not nan"),
    (f"watch {HERE} --interval soon", "'--interval': Input should be a valid number"),
    ("dashboard nothing", "there is no run 'nothing'"),
    (f"dashboard {HERE} nothing", "there is no run 'nothing'"),
    ("sync nothing", "there is no run 'nothing'"),
    ("rm nothing", "there is no run 'nothing'"),
    ("rm ..", "there is no run in '..'"),
    ("rm", "Missing argument 'RUN'"),
    ("rm zzz*", "matches 'zzz*'; `gptlab runs` lists them"),
    (f"rm {HERE} zzz* --yes", "matches 'zzz*'"),
    ("gc --optimizer nothing", "there is no run 'nothing'"),
    (f"gc {HERE}", "RUN needs --optimizer or --snapshots; without them, gc empties the trash"),
    ("check", "Missing argument 'PART'"),
    ("check rleu", "which field 'rleu' is for is unknown: no experiment uses it; give --field"),
    ("check relu --field model.activaton", "no part belongs to the field 'model.activaton'; did you mean"),
    ("check experiments.parts.none:x --field model.norm", "there is no file experiments/parts/none.py"),
    ("gc --all", "No such option: --all; available: --optimizer, --snapshots, --yes, "),
    ("text", "Missing argument 'SOURCE'"),
    ("text README.md", "Missing option '--out' / '-o'"),
    ("text nothing -o x.txt", "there is no file or folder 'nothing'"),
    ("text README.md --out /", "--out is '/', which cannot be a file"),
    ("text README.md -o README.md", "'README.md' exists; pass --force to replace it"),
    ("text README.md -o x.txt --encoding what", "there is no encoding 'what'"),
    ("text README.md -o x.txt --separator \\q", "--separator has '\\q', which means nothing"),
    ("text nothing -o x.txt --text-key", "'--text-key' requires an argument"),
    ("tokenizer make", "No such command 'make'"),
    ("tokenizer train", "Missing argument 'TEXT'"),
    ("tokenizer train pandas-docs", "Missing option '--vocab-size'"),
    ("tokenizer train pandas-docs --vocab-size 256", "'--vocab-size': Input should be greater than or equal to 257"),
    ("tokenizer train pandas-docs --vocab-size 65537", "'--vocab-size': Input should be less than or equal to 65536"),
    ("tokenizer train missing.txt --vocab-size 300", "there is no file 'missing.txt'"),
    ("tokenizer train pandas-docs --vocab-size 300 --out /", "--out is '/', which cannot be a file"),
    ("run tiny --set data.tokenizer=bytes", "set model.vocab_size=256"),
    ("run tiny --set data.tokenizer=byte", "there is no tokenizer 'byte'; did you mean 'bytes'?"),
    ("run tiny --set data.tokenizer=README.md", "'README.md' cannot be used as a tokenizer: Invalid JSON"),
    ("run tiny-4k --set model.vocab_size=4097", "which has 4096 tokens; set model.vocab_size=4096"),
]

FIELDS = [
    ("model.n_layer", "0", "greater than or equal to 1, not '0'"),
    ("model.n_head", "1.5", "valid integer"),
    ("model.n_embd", "wide", "valid integer"),
    ("model.context_length", "9999999", "less than or equal to 1048576"),
    ("model.vocab_size", "100", "greater than or equal to 50257"),
    ("model.bias", "perhaps", "valid boolean"),
    ("model.tied", "2", "valid boolean"),
    ("model.dropout", "1", "less than 1"),
    ("train.schedule", "cosin", "did you mean 'cosine'?"),
    ("train.warmup_steps", "-1", "greater than or equal to 0"),
    ("train.horizon", "100", "schedule constant ignores horizon 100; set train.horizon=none or train.schedule=wsd"),
    ("train.decay_steps", "5", "schedule constant ignores decay_steps 5; set train.decay_steps=none"),
    ("train.optimizer", "adam", "did you mean 'adamw'?"),
    ("model.block", "prenorm", "did you mean 'pre-norm'?"),
    ("model.attention", "full", "choose causal or a part"),
    ("model.feed_forward", "experiments.parts.relu", "choose mlp or a part"),
    ("model.activation", "gelu_exact", "did you mean 'gelu-exact'?"),
    ("model.norm", "experiments.parts.none:Norm", "but there is no file experiments/parts/none.py; restore it"),
    ("model.position", "os:getcwd", "there is no position 'os:getcwd'"),
    ("data.text", "", "at least 1 character"),
    ("data.val_fraction", "0", "greater than 0"),
    ("data.val_windows", "-1", "greater than or equal to 1"),
    ("data.tokenizer", "", "at least 1 character"),
    ("train.sequence_length", "", "valid integer"),
    ("train.batch_size", "-4", "greater than or equal to 1, not '-4'"),
    ("train.learning_rate", "fast", "valid number, unable to parse string as a number, not 'fast'"),
    ("train.betas", "[0.9,1.5]", "train.betas.1: input should be less than 1"),
    ("train.eps", "0", "greater than 0"),
    ("train.weight_decay", "nan", "finite number"),
    ("train.grad_clip", "inf", "finite number"),
    ("train.precision", "float16", "'auto', 'float32' or 'bfloat16'"),
    ("train.steps", "1e3", "valid integer"),
    ("train.log_every", "0", "greater than or equal to 1"),
    ("train.eval_every", "0", "greater than or equal to 1"),
    ("train.checkpoint_every", "0", "greater than or equal to 1"),
    ("train.keep_checkpoints", "1", "greater than or equal to 2"),
    ("train.keep_steps", "[0]", "greater than or equal to 1"),
    ("train.snapshots", "often", "valid boolean"),
    ("train.prompt", "", "at least 1 character"),
]

MAKE = [
    (["exp", "NAME=basline"], "did you mean 'baseline'?"),
    (["exp", "NAME=tiny", "SEED=one"], "'--seed': Input should be a valid integer"),
    (["exp", "NAME=tiny", "SEEDS=0..4"], "--seeds expects numbers such as 0,1,2 or 0-4"),
    (["exp", "NAME=tiny", "STEPS=-5"], "'--steps': Input should be"),
    (["exp", "NAME=tiny", "TEXT=missing.txt"], "there is no file 'missing.txt'"),
    (["exp", "NAME=tiny", "SET=train.lr=1"], "there is no spec field 'train.lr'"),
    (["sweep", "NAME=lerning-rate"], "there is no sweep or experiment 'lerning-rate'; did you mean 'learning-rate'?"),
    (["sweep", "NAME=learning-rate", "JOBS=0"], "'--jobs': Input should be"),
    (["exp", "NMAE=tiny"], "there is no variable NMAE; available: NAME"),
    (["report", "NAME=nothing*"], "there is no run with name 'nothing*'; `gptlab runs` lists them"),
    (["report", "TAG=nothing"], "there is no run with tag 'nothing'"),
    (["report", "AT=first"], "--at is 'first', but no run has a validation loss"),
    (["report", "AGAINST=nothing", "TABLE=latex"], "there are no runs yet"),
    (["report", "TABLE=html", "FIGURES=x", "OPEN=1"], "--table is 'html'"),
    (["report", "OUT=Makefile/x"], "--out is 'Makefile/x', which cannot be a directory"),
    (["dashboard", "RUN=nothing"], "there is no run 'nothing'"),
    (["sync", "RUN=nothing"], "there is no run 'nothing'"),
    (["fuzz", "EXAMPLES=many"], "EXAMPLES must be a number"),
    (["torture", "MINUTES=long"], "--minutes: invalid float value: 'long'"),
    (["torture", "MINUTES=-1"], "MINUTES must be more than 0"),
    (["torture", "TRIAL=-1"], "TRIAL must be 0 or more"),
    (["torture", "SEED=one"], "--seed: invalid int value: 'one'"),
    (["torture", "NAME=earthquakes"], "there is no kind earthquakes; the kinds are: kills"),
    (["exp", "PYTHON=python0", "VENV={empty}"], "there is no Python at python0"),
]


@pytest.fixture(scope="module")
def two_runs(micro, gpt2_micro, cache, tmp_path_factory):
    """A runs directory with two runs whose ids share a prefix, and the id of the first."""
    runs = tmp_path_factory.mktemp("kept") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(runs))
        patch.setenv("GPTLAB_CACHE", str(cache))
        first = run_attempt(gpt2_micro, seed=0, steps=20).run
        run_attempt(micro, seed=1, steps=20)
    return runs, first.id


@pytest.fixture
def complain(two_runs, monkeypatch, capfd, tmp_path):
    """`complain("run", …)` → the command's one-line error; checks that nothing was written."""
    runs, run = two_runs
    monkeypatch.setenv("GPTLAB_RUNS", str(runs))
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text('{"model_type": "llama"}')

    def contents():
        return {path: path.stat().st_mtime_ns for path in runs.rglob("*")}

    def type_(*arguments):
        before = contents()
        words = [word.replace(HERE, run).replace(EXPORT, str(export)) for word in arguments]
        monkeypatch.setattr(sys, "argv", ["gptlab", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert contents() == before
        return err

    return type_


@pytest.mark.parametrize(("line", "answer"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_an_invalid_command_is_a_one_line_error(complain, line, answer):
    assert answer in complain(*line.split(" "))


@pytest.mark.parametrize(("field", "value", "answer"), FIELDS)
def test_an_invalid_field_value_is_a_one_line_error(complain, field, value, answer):
    line = complain("run", "tiny", "--set", f"{field}={value}")
    assert answer in line
    assert field.rpartition(".")[2] in line


REAL = ("exp NAME=basline", "report TABLE=html FIGURES=x OPEN=1", "torture MINUTES=long")
"""Calls of make that start the programs themselves. Each start takes one or two seconds."""

STAND_IN = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" > "${0%/*}/typed"
exit 2
"""
"""A program that writes down how make has called it."""


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """A virtual environment whose programs are stand-ins."""
    environment = tmp_path_factory.mktemp("stand-ins")
    (environment / "bin").mkdir()
    for name in ("gptlab", "python"):
        (environment / "bin" / name).write_text(STAND_IN)
        (environment / "bin" / name).chmod(0o755)
    return environment


def called(words: list[str]) -> int | None:
    """Do what the programs do that make has called with these words."""
    os.chdir(ROOT)
    program = words[2] if words[:2] == ["python", "-m"] else words[0]
    sys.argv = [program, *words[1 if program == "gptlab" else 3 :]]
    return {"gptlab": cli.main, "analysis.report": report.main, "torture": torture.main}[program]()


@pytest.mark.parametrize(("variables", "answer"), MAKE, ids=[" ".join(variables) for variables, _ in MAKE])
def test_an_invalid_make_variable_is_a_one_line_error(variables, answer, stand_ins, tmp_path):
    environment = sys.prefix if " ".join(variables) in REAL else stand_ins
    own = ["-o", f"{environment}/.ready", f"VENV={environment}"] if "VENV={empty}" not in variables else []
    command = ["make", "--no-print-directory", *own, *(word.format(empty=tmp_path / "venv") for word in variables)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not re.match(r"make.*: \*\*\* \[.*Error \d+$", line)]
    assert done.returncode == 2
    typed = stand_ins / "bin" / "typed"
    if typed.exists():
        words = typed.read_text().split("\0")[:-1]
        typed.unlink()
        ended = in_child(lambda: called(words), tmp_path)
        assert (ended.code, done.stdout, lines) == (2, ended.out, [])
        lines = ended.err.splitlines()
    assert len(lines) == 1, lines
    assert answer in lines[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("variable", ["GPTLAB_RUNS", "GPTLAB_CACHE"])
@pytest.mark.parametrize("value", ["{file}", "{file}/below", "~nobody-of-that-name/x", "x" * 5000])
def test_an_invalid_directory_variable_is_a_one_line_error(monkeypatch, capfd, tmp_path, variable, value):
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, value.format(file=tmp_path / "file"))
    monkeypatch.setattr(sys, "argv", ["gptlab", "run", "tiny", "--wandb", "off"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith(f"error: {variable} is '")
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize("value", ["ofline", "on"])
def test_an_invalid_wandb_mode_is_a_one_line_error(complain, monkeypatch, value):
    monkeypatch.setenv("WANDB_MODE", value)
    answer = "did you mean 'offline'?" if value == "ofline" else f"there is no WANDB_MODE '{value}'"
    assert answer in complain("run", "tiny")
    assert answer in complain("resume", HERE)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--nmae", "x"], "unrecognized arguments: --nmae x"),
        (["--name"], "--name: expected one argument"),
        (["--name", "zzz"], "there is no run with name 'zzz'"),
        (["--out", ""], "--out is '', which cannot be a directory"),
        (["--out", "~nobody-of-that-name/x"], "which cannot be a directory"),
        (["--out", "x" * 5000], "which cannot be a directory"),
    ],
)
def test_an_invalid_report_option_is_a_one_line_error(capsys, tmp_path, arguments, answer):
    assert report.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert answer in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_report_of_an_invalid_runs_directory_is_a_one_line_error(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPTLAB_RUNS", str(tmp_path / "file"))
    assert report.main([]) == 2
    assert capsys.readouterr().err.startswith("error: GPTLAB_RUNS is '")


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("GPTLAB_RUNS", "")
    assert project.runs_directory() == project.root() / "runs"


# --- the tables are complete ---


def test_every_option_and_argument_has_a_case():
    group = typer.main.get_command(cli.app)
    missing = []
    nested = {f"{name} {sub}": c for name in ("tokenizer",) for sub, c in group.commands[name].commands.items()}
    for name, command in {**group.commands, **nested}.items():
        lines = [line for line, _ in COMMANDS if f"{line} ".startswith(f"{name} ")]
        if not lines:
            missing.append(name)
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.is_flag:
                wanted = max(parameter.opts, key=len)
                if not any(re.search(rf" {wanted}\b", line) for line in lines):
                    missing.append(f"{name} {wanted}")
    assert not missing, "COMMANDS needs an invalid call of each command and of each option with a value"


def test_every_field_of_a_spec_has_a_case():
    fields = {
        f"{section}.{field}"
        for section in SECTIONS
        for field in type(getattr(Experiment(name="a", why="b"), section)).model_fields
    }
    missing = fields ^ {field for field, _, _ in FIELDS}
    assert not missing, f"FIELDS needs one invalid value of each field: {missing}"


def test_every_environment_variable_has_a_case():
    sources = "".join(path.read_text() for folder in ("gptlab", "analysis") for path in (ROOT / folder).rglob("*.py"))
    assert set(re.findall(r"\bGPTLAB_[A-Z]+\b", sources)) == {"GPTLAB_RUNS", "GPTLAB_CACHE", "GPTLAB_DEBUG"}


def test_every_make_variable_has_a_case():
    (listed,) = re.findall(r"^VARIABLES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word.partition("=")[0] for variables, _ in MAKE for word in variables[1:]} >= set(listed.split())
