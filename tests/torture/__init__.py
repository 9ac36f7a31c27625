"""`make torture`: break things at random for some minutes, and check that gptlab keeps its promises.

Each trial belongs to one kind of fault. What it does follows from the seed and the trial's number alone, so a failed
trial can be repeated: `make torture SEED=… TRIAL=…`.

    campaign     runs trials, two at a time, until the time is over, and reports
    trial        one trial: its number, its random choices, its folder
    place        the project, the undisturbed runs, and copies of them for each trial
    process      commands in forked children of a warm parent, or in fresh processes
    operations   acts at the N-th file operation of a process
    system       namespaces, small disks, read-only mounts, missing privileges
    claims       what a command says about a run, to be compared with what is true

    kills, full_disk, mutations, concurrency, matrix, startup    one kind of fault each
"""
